"""Files of Jetsons as JetPack lays them out, and a board whose clocks, heat and power can be scripted."""

from __future__ import annotations

from pathlib import Path

from msn_deploy.bench.measure import Arm

MHZ = 1_000_000
MODELS = {
    "xavier-nx": "NVIDIA Jetson Xavier NX Developer Kit",
    "agx-xavier": "Jetson-AGX",
    "orin-nano": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    "agx-orin": "NVIDIA Jetson AGX Orin Developer Kit",
    "thor": "NVIDIA Jetson AGX Thor Developer Kit",
}
GPU = {
    "xavier-nx": "17000000.gv11b",
    "agx-xavier": "17000000.gv11b",
    "orin-nano": "17000000.gpu",
    "agx-orin": "17000000.ga10b",
    "thor": "gpu-gpc-0",
}
NODE = {"xavier-nx": "gv11b", "agx-xavier": "gv11b", "orin-nano": "gpu", "agx-orin": "ga10b", "thor": None}
# Its folder where the node cannot be read, and its name: Nano, TX2, Xavier, Orin, Orin with JetPack 7, Thor.
CONTAINER_GPUS = {
    "57000000.gpu": "gpu",
    "57000000.gm20b": "gm20b",
    "17000000.gp10b": "gp10b",
    "17000000.gv11b": "gv11b",
    "17000000.ga10b": "ga10b",
    "17000000.gpu": "gpu",
    "gpu-gpc-0": "gpu-gpc-0",
}
# Labels by power sensor and channel; the watts given to a board are split over the rails that make up the whole. Thor:
# what jetson_stats (pull request 900) and owners of a developer kit found.
RAILS = {
    "xavier-nx": [("ina3221", ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"])],
    "agx-xavier": [("ina3221", ["GPU", "CPU", "SOC"]), ("ina3221", ["CV", "VDDRQ", "SYS5V"])],
    "orin-nano": [("ina3221", ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"])],
    "agx-orin": [
        ("ina3221", ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]),
        ("ina3221", ["NC", "VDDQ_VDD2_1V8AO", "NC"]),
    ],
    "thor": [("ina3221", ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"]), ("ina238", ["VIN"])],
}
WHOLE = {
    "xavier-nx": {"VDD_IN": 1.0},
    "agx-xavier": {"GPU": 0.4, "CPU": 0.2, "SOC": 0.1, "CV": 0.05, "VDDRQ": 0.05, "SYS5V": 0.2},
    "orin-nano": {"VDD_IN": 1.0},
    "agx-orin": {"VDD_GPU_SOC": 0.5, "VDD_CPU_CV": 0.2, "VIN_SYS_5V0": 0.3},
    "thor": {"VIN": 1.0},
}
# Zone -> trip points (kind, degrees Celsius, cooling devices that it binds).
Zones = dict[str, list[tuple[str, float, list[str]]]]


def _orin(unit: str) -> list[tuple[str, float, list[str]]]:
    slowing = ["cpufreq-cpu0", "cpufreq-cpu4", f"{unit}-throttle-alert", "devfreq-17000000.gpu"]
    return [("passive", 99, slowing), ("critical", 104.5, []), ("passive", 70, ["hot-surface-alert"])]


# Linux' tegra194-p3509-0000.dtsi: the passive trip point of the CPU holds the fan at rest.
_XAVIER: Zones = {
    "cpu-thermal": [
        ("critical", 96.5, ["pwm-fan"]),
        ("hot", 70, ["pwm-fan"]),
        ("active", 50, ["pwm-fan"]),
        ("passive", 30, ["pwm-fan"]),
    ],
    "gpu-thermal": [("critical", 99, [])],
    "aux-thermal": [("critical", 90, [])],
}
# What an owner of an Orin NX read from L4T 36.3 (cpu-thermal; the other units look alike), tj-thermal of an Orin Nano.
_ORIN: Zones = {
    "gpu-thermal": _orin("gpu"),
    "cpu-thermal": _orin("cpu"),
    "cv0-thermal": _orin("cv0"),
    "tj-thermal": [("active", 74, ["pwm-fan"]), ("active", 95, ["pwm-fan"]), ("critical", 104.5, [])],
}
HEAT: dict[str, Zones] = {
    # NVIDIA's device tree tegra210-p3448-0000-p3449-0000-b00 of L4T 32.4, which a user sent to the xen-devel list.
    "nano": {
        "AO-therm": [
            *(("active", celsius, ["gpu-scaling"]) for celsius in (15, 30, 50, 70, 105)),
            ("active", 83, ["GPU-cap"]),
            ("active", 15, ["CORE-floor"]),
            ("active", 85, ["CORE-cap"]),
            ("active", 15, ["DFLL-floor"]),
        ],
        "CPU-therm": [
            ("active", 66, ["DFLL-cap"]),
            ("active", 86, ["DFLL-cap"]),
            ("critical", 102, []),
            ("hot", 100.5, ["tegra_heavy"]),
            ("passive", 97, ["cpu-balanced"]),
        ],
        "GPU-therm": [("critical", 102.5, []), ("hot", 101, ["tegra_heavy"]), ("passive", 97.5, ["gpu-balanced"])],
        "PLL-therm": [("passive", 70, ["tegra-dram"])],
        "PMIC-Die": [("active", 120, ["emergency-balanced"])],
    },
    "xavier-nx": _XAVIER,
    "agx-xavier": _XAVIER,
    "orin-nano": _ORIN,
    "agx-orin": _ORIN,
    # An AGX Thor developer kit with L4T 38.4, as two owners describe it.
    "thor": {
        "gpu-thermal": [
            ("passive", 109, ["gpu-throttle-alert", "devfreq-gpu-gpc-0", "devfreq-gpu-nvd-0"]),
            ("critical", 114.5, []),
        ],
        "cpu-thermal": [("passive", 109, ["cpu-throttle-alert", "cpufreq-cpu0"]), ("critical", 114.5, [])],
        "tj-thermal": [*(("active", celsius, ["pwm-fan"]) for celsius in (80, 86, 91, 100)), ("critical", 114.5, [])],
    },
    # Documentation/driver-api/thermal/sysfs-api.rst, and what else an Intel laptop registers.
    "laptop": {
        "acpitz": [
            ("critical", 100, []),
            ("passive", 80, ["Processor"]),
            ("active", 70, ["Fan"]),
            ("active", 60, ["Fan"]),
        ],
        "x86_pkg_temp": [("passive", 0, [])],
        "iwlwifi_1": [("passive", 45, [])],
    },
}
OFFLINE = "cv0-thermal"  # its unit is switched off
# Bound to no trip point.
UNBOUND = {"laptop": ["intel_powerclamp", "LCD", "TCC Offset"]}


class FakeHeat:
    """The thermal zones of a machine and its cooling devices, all cool and at rest."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root / "sys/class/thermal"
        zones = HEAT[kind]
        bound = [device for points in zones.values() for _, _, devices in points for device in devices]
        self.devices = list(dict.fromkeys([*bound, *UNBOUND.get(kind, ())]))
        self.zones = list(zones)
        for at, device in enumerate(self.devices):
            self.put(f"cooling_device{at}/type", device)
            self.set_state(device, 0)
        for at, (zone, points) in enumerate(zones.items()):
            self.put(f"thermal_zone{at}/type", zone)
            self.set_celsius(zone, -256 if zone == OFFLINE else 52)
            links = iter(range(99))
            for number, (trip, celsius, devices) in enumerate(points):
                self.put(f"thermal_zone{at}/trip_point_{number}_type", trip)
                self.put(f"thermal_zone{at}/trip_point_{number}_temp", round(1000 * celsius))
                for device, link in zip(devices, links, strict=False):
                    self.put(f"thermal_zone{at}/cdev{link}_trip_point", number)
                    target = f"../cooling_device{self.devices.index(device)}"
                    (self.root / f"thermal_zone{at}/cdev{link}").symlink_to(target)

    def set_celsius(self, zone: str, celsius: float) -> None:
        self.put(f"thermal_zone{self.zones.index(zone)}/temp", round(1000 * celsius))

    def set_state(self, device: str, state: int) -> None:
        self.put(f"cooling_device{self.devices.index(device)}/cur_state", state)

    def put(self, name: str, content: object) -> None:
        put(self.root / name, content)


def put(path: Path, content: object) -> None:
    """Write a file; a new number covers the old one, since cutting files off is slow."""
    padded = str(content).ljust(12, "\n")
    if path.exists():
        with path.open("r+") as stream:
            stream.write(padded)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(padded)


class FakeJetson:
    """One board. Its clock moves when an arm runs or something sleeps; its files are what the code reads."""

    def __init__(
        self,
        root: Path,
        kind: str,
        *,
        pinned: bool = True,
        without: str = "",
        update_ms: int = 20,
        gpu: str = "",
        gpu_mhz: int = 1020,
    ) -> None:
        """gpu: its folder, in a container, where `of_node` cannot be read."""
        self.root, self.kind, self.now, self.drawing = root, kind, 0, 0.0
        self.gpu_max = gpu_mhz * MHZ
        self._put("proc/device-tree/model", MODELS[kind] + "\0")
        self._put("proc/loadavg", "0.50 0.40 0.30 1/200 99\n")
        self._put("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 38968081\n")
        self._put("var/lib/nvpmodel/status", "pmode:0002 fmode:quiet\n")
        self._put("etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n")
        self.gpu = f"sys/class/devfreq/{gpu or GPU[kind]}"
        if NODE[kind] and not gpu:
            self._put(f"{self.gpu}/device/of_node/name", f"{NODE[kind]}\0")
        if not gpu:
            self._put("sys/class/devfreq/15340000.vic/device/of_node/name", "vic\0")
        self._put("sys/class/devfreq/15340000.vic/cur_freq", "115200000\n")
        self._put(f"{self.gpu}/max_freq", self.gpu_max)
        self._put(f"{self.gpu}/min_freq", self.gpu_max if pinned else 306 * MHZ)
        self.set_gpu(self.gpu_max)
        emc = "sys/class/devfreq/bwmgr/cur_freq" if kind == "thor" else "sys/kernel/debug/bpmp/debug/clk/emc/rate"
        self._put(emc, 3199 * MHZ)
        for core in range(4):
            folder = f"sys/devices/system/cpu/cpu{core}"
            self._put(f"{folder}/online", int(core < 3))
            if core == 3:  # switched off by the power mode: no clock, and none that counts
                continue
            low = 1_728_000 if pinned else 115_200
            for name, khz in (("cur", 1_728_000), ("min", low), ("max", 1_728_000)):
                self._put(f"{folder}/cpufreq/scaling_{name}_freq", khz)
            self._put(f"{folder}/cpufreq/scaling_governor", "schedutil\n")
        self.heat = FakeHeat(root, kind)
        self.heat.set_celsius("cpu-thermal", 55.5)
        self.heat.set_state("pwm-fan", 2)
        self._put("sys/class/hwmon/hwmon9/oc1_event_cnt", 4)
        self._currents: dict[str, str] = {}
        for at, (chip, labels) in enumerate(RAILS[kind]):
            device = f"sys/bus/i2c/devices/1-004{at}"
            self._put(f"{device}/name", f"{chip}\n")
            hwmon = f"{device}/hwmon/hwmon{at + 2}"
            if chip == "ina238":  # Linux 6.8 shows no update_interval
                for name, content in (("in1_input", 5000), ("curr1_input", 700)):
                    self._put(f"{hwmon}/{name}", content)
                if labels[0] != without:
                    self._put(f"{hwmon}/label", f"{labels[0]}\n")
                    self._currents[labels[0]] = f"{hwmon}/power1_input"
                continue
            self._put(f"{hwmon}/update_interval", update_ms)
            for channel, label in enumerate(labels, start=1):
                if label == without:
                    continue
                self._put(f"{hwmon}/in{channel}_label", f"{label}\n")
                self._put(f"{hwmon}/in{channel}_input", 5000)
                self._put(f"{hwmon}/curr{channel}_input", 700)
                self._currents[label] = f"{hwmon}/curr{channel}_input"
            self._put(f"{hwmon}/in7_label", "Sum of shunt voltages\n")
        self.set_watts(4.0)

    def _put(self, name: str, content: object) -> None:
        put(self.root / name, content)

    def set_gpu(self, hertz: int) -> None:
        self._put(f"{self.gpu}/cur_freq", hertz)

    def set_events(self, count: int) -> None:
        self._put("sys/class/hwmon/hwmon9/oc1_event_cnt", count)

    def set_watts(self, watts: float) -> None:
        """Draw so much at 5 V."""
        self.drawing = watts
        for label, share in WHOLE[self.kind].items():
            if label in self._currents:
                microwatts = self._currents[label].endswith("power1_input")
                self._put(self._currents[label], round(watts * share * (1e6 if microwatts else 1000 / 5)))

    def clock(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        if self.drawing != 4.0:
            self.set_watts(4.0)
        self.now += round(1e9 * seconds)

    def arm(self, name: str, *, ms: float, watts: float) -> Arm:
        """Answer in so long, drawing so much meanwhile; every third answer takes a little more."""
        count = [0]

        def run() -> None:
            count[0] += 1
            if self.drawing != watts:
                self.set_watts(watts)
            self.now += round(1e6 * ms * (1.01 if count[0] % 3 == 0 else 1.0))

        return Arm(name=name, run=run)
