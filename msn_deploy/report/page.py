"""The page around the report: colours, type and layout, in one file without anything from outside."""

from __future__ import annotations

from html import escape

# Text colours keep a contrast of at least 4.5 against `paper` (WCAG 2 AA). c0 to c5 are the arms, in order.
LIGHT = {
    "paper": "#fdfcfa",
    "ink": "#20242a",
    "soft": "#5b626d",
    "rule": "#dfdcd5",
    "grid": "#ebe8e2",
    "zone": "#e9edf0",
    "dirty": "#f3d9d3",
    "c0": "#5c6573",
    "c1": "#0b6c8c",
    "c2": "#b0500c",
    "c3": "#6b4aa5",
    "c4": "#2d7338",
    "c5": "#a5305b",
    "faster": "#1f6f43",
    "slower": "#a8321f",
    "same": "#4f5b68",
    "ambiguous": "#8a5a00",
}
DARK = {
    "paper": "#15181c",
    "ink": "#e7e5e0",
    "soft": "#a2a9b3",
    "rule": "#343a42",
    "grid": "#262b31",
    "zone": "#252d34",
    "dirty": "#4a2620",
    "c0": "#a4adb9",
    "c1": "#5db8d8",
    "c2": "#ee9c57",
    "c3": "#b79df0",
    "c4": "#7fc98b",
    "c5": "#ee8db0",
    "faster": "#7fcf9f",
    "slower": "#f09480",
    "same": "#aab4c0",
    "ambiguous": "#e0b050",
}

_STYLE = """
*{box-sizing:border-box}
html{background:var(--paper);color:var(--ink);-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:40px 20px 64px;max-width:740px;overflow-wrap:break-word;
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;font-variant-numeric:tabular-nums}
h1,.finding{font-family:ui-serif,"Iowan Old Style",Palatino,Georgia,"Times New Roman",serif}
h1{font-size:31px;line-height:1.2;font-weight:600;margin:0 0 6px;text-wrap:balance}
h2{font-size:19px;line-height:1.3;margin:52px 0 4px;padding-top:14px;border-top:1px solid var(--rule)}
h3{font-size:15px;margin:22px 0 0}
p{margin:6px 0 12px;max-width:66ch}.meta{max-width:none}
.meta,.note,figcaption,summary{color:var(--soft);font-size:14px}
.findings{margin:22px 0 0;padding:0;list-style:none}
.finding{font-size:20px;line-height:1.4;margin:0 0 12px;padding-left:14px;border-left:3px solid var(--rule)}
.finding b{font-weight:600}
.finding.FASTER{border-color:var(--faster)}.finding.SLOWER{border-color:var(--slower)}
.finding.AMBIGUOUS{border-color:var(--ambiguous)}
figure{margin:14px 0 8px}
figcaption{margin-top:4px;max-width:72ch}
svg{display:block;max-width:100%;height:auto;margin:0 auto}
svg.narrow{display:none}
svg text{font-family:inherit;font-size:13px;fill:var(--ink)}
svg text.name{font-size:14px;font-weight:600}
svg text.figure{font-size:14px}
.verdict.FASTER{--v:var(--faster)}.verdict.SLOWER{--v:var(--slower)}.verdict.AMBIGUOUS{--v:var(--ambiguous)}
svg text.verdict{fill:var(--v,var(--same));font-size:13px;font-weight:600;letter-spacing:.02em}
svg text.tick,svg text.faint{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--grid)}.ground{stroke:var(--rule)}.one{stroke:var(--ink);stroke-width:1.25}.zone{fill:var(--zone)}.dirty{fill:var(--dirty)}
.layer{fill-opacity:.8;stroke:none}.disc{fill-opacity:.75;stroke-width:2}.leader{stroke-width:1;stroke-opacity:.45}
.hollow{fill:var(--paper);stroke-width:2}.dropped{fill:none;stroke-width:1;stroke-opacity:.7}
.hill{fill-opacity:.22;stroke-width:1.5}.mark{stroke-width:2.25}.whisker{stroke-width:2}.speck{fill-opacity:.6;stroke:none}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:14px;line-height:1.4}
caption{text-align:left;font-weight:600;padding:12px 0 4px}
.nb{white-space:nowrap}
th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--grid);vertical-align:top;font-weight:400}
thead th{color:var(--soft);font-size:13px;border-bottom:1px solid var(--rule);vertical-align:bottom}
tbody th{font-weight:600}
td.n,th.n{text-align:right}td.n{white-space:nowrap}
tr>:last-child{padding-right:0}
table.facts th[scope=row]{font-weight:400;color:var(--soft);width:34%;min-width:110px}
table.facts td{overflow-wrap:anywhere}
table.facts thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
code{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.bar{display:block;height:4px;min-width:56px;margin-top:4px;background:var(--grid)}
.bar i{display:block;height:4px;margin-left:auto;background:var(--c1)}
.v{font-size:13px;font-weight:600;letter-spacing:.02em;color:var(--same)}
.v.FASTER{color:var(--faster)}.v.SLOWER{color:var(--slower)}.v.AMBIGUOUS{color:var(--ambiguous)}
.swatch{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:8px}
summary{cursor:pointer;padding:4px 0}
summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--c1);outline-offset:3px}
footer{margin-top:56px;padding-top:12px;border-top:1px solid var(--rule);color:var(--soft);font-size:13px}
@media (max-width:640px){body{padding:24px 16px 48px}h1{font-size:26px}.finding{font-size:18px}
svg.wide{display:none}svg.narrow{display:block}th,td{padding-right:9px}table{font-size:13px}
.v{font-size:12px}.bar{min-width:40px}}
@media print{body{max-width:none;padding:0;font-size:11pt}figure,tr,.finding{break-inside:avoid}h2{break-after:avoid}
.scroll{overflow:visible}details::details-content{content-visibility:visible;height:auto}summary{display:none}
svg.wide{display:block}svg.narrow{display:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def page(title: str, body: str) -> str:
    """Return the whole document; `body` is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Without this a browser asks the server that shows the page for a favicon: a request, and a console error.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_style()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _style() -> str:
    arms = "".join(
        f".c{n}{{stroke:var(--c{n});fill:var(--c{n})}}svg text.t{n}{{fill:var(--c{n})}}.s{n}{{background:var(--c{n})}}"
        for n in range(6)
    )
    light, dark = _variables(LIGHT), _variables(DARK)
    # Paper is white: a page printed from a dark screen has to fall back to the light colours.
    schemes = (
        f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    )
    return schemes + arms + _STYLE


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())
