"""Files of three Jetsons as JetPack lays them out, and a board whose clocks, heat and power can be scripted."""

from __future__ import annotations

from pathlib import Path

from msn_deploy.bench.measure import Arm

MHZ = 1_000_000
MODELS = {
    "orin-nano": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    "agx-orin": "NVIDIA Jetson AGX Orin Developer Kit",
    "thor": "NVIDIA Jetson AGX Thor Developer Kit",
}
GPU = {"orin-nano": "17000000.gpu", "agx-orin": "17000000.ga10b", "thor": "gpu-gpc-0"}
NODE = {"orin-nano": "gpu", "agx-orin": "ga10b", "thor": None}
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
# Labels by INA3221 device and channel; the watts given to a board are split over the rails that make up the whole.
RAILS = {
    "orin-nano": [["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]],
    "agx-orin": [["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], ["NC", "VDDQ_VDD2_1V8AO", "NC"]],
    "thor": [["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], ["VIN", "NC", "NC"]],
}
WHOLE = {
    "orin-nano": {"VDD_IN": 1.0},
    "agx-orin": {"VDD_GPU_SOC": 0.5, "VDD_CPU_CV": 0.2, "VIN_SYS_5V0": 0.3},
    "thor": {"VIN": 1.0},
}


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
        for at, (name, celsius) in enumerate((("gpu-thermal", 52.0), ("cpu-thermal", 55.5), ("PMIC-Die", 100.0))):
            zone = f"sys/class/thermal/thermal_zone{at}"
            self._put(f"{zone}/type", name)
            self._put(f"{zone}/temp", int(1000 * celsius))
            self._put(f"{zone}/trip_point_0_type", "active")
            self._put(f"{zone}/trip_point_0_temp", 45_000)
            self._put(f"{zone}/trip_point_1_type", "passive")
            self._put(f"{zone}/trip_point_1_temp", 99_000)
        self._put("sys/class/thermal/thermal_zone3/type", "cv0-thermal")
        self._put("sys/class/thermal/thermal_zone3/temp", -256_000)  # switched off
        for at, name in enumerate(("pwm-fan", "gpu-throttle-alert")):
            self._put(f"sys/class/thermal/cooling_device{at}/type", name)
            self._put(f"sys/class/thermal/cooling_device{at}/cur_state", 2 if name == "pwm-fan" else 0)
        self._put("sys/class/hwmon/hwmon9/oc1_event_cnt", 4)
        self._currents: dict[str, str] = {}
        for at, labels in enumerate(RAILS[kind]):
            device = f"sys/bus/i2c/devices/1-004{at}"
            self._put(f"{device}/name", "ina3221\n")
            hwmon = f"{device}/hwmon/hwmon{at + 2}"
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
        path = self.root / name
        padded = str(content).ljust(12, "\n")  # so that a new number covers the old one: cutting files off is slow
        if path.exists():
            with path.open("r+") as stream:
                stream.write(padded)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(padded)

    def set_gpu(self, hertz: int) -> None:
        self._put(f"{self.gpu}/cur_freq", hertz)

    def set_zone(self, celsius: float) -> None:
        self._put("sys/class/thermal/thermal_zone0/temp", int(1000 * celsius))

    def set_cooling(self, state: int) -> None:
        self._put("sys/class/thermal/cooling_device1/cur_state", state)

    def set_events(self, count: int) -> None:
        self._put("sys/class/hwmon/hwmon9/oc1_event_cnt", count)

    def set_watts(self, watts: float) -> None:
        """Draw so much at 5 V."""
        self.drawing = watts
        for label, share in WHOLE[self.kind].items():
            if label in self._currents:
                self._put(self._currents[label], round(watts * share / 5 * 1000))

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
