"""The frame and the look of a report, which holds everything itself: no script, font or picture from outside."""

from __future__ import annotations

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>
{head}
</header>
{body}
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #5f6873; --line: #dfe3e8; --paper: #fff; --panel: #f5f6f8;
  --accent: #2463a8; --hit: 36 99 168; --miss: 200 78 38; --c0: #2463a8; --c1: #d0622b; --c2: #2c8a57; --c3: #b58a0c;
  --c4: #7c51a1; --c5: #c04470; --c6: #23949b; --c7: #8c6a3a; --c8: #6d7683; --c9: #98321f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4b0; --line: #30363e; --paper: #14171b;
  --panel: #1c2025; --accent: #6ea8e6; --hit: 74 140 214; --miss: 222 108 66; --c0: #6ea8e6; --c1: #ee8f5c;
  --c2: #63bf8c; --c3: #dcb644; --c4: #b18ed6; --c5: #e682a6; --c6: #5cc3c9; --c7: #c3a06d; --c8: #a3adb9;
  --c9: #e0705c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; font-weight: 600; line-height: 1.25; margin: 0 0 1.25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 0 0 .75rem; }
h3 { font-size: .9rem; font-weight: 600; margin: 1.5rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; color: var(--soft); }
section { margin-top: 2.25rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
small { color: var(--soft); font-weight: 400; font-size: .8rem; }
.headline { display: flex; align-items: center; gap: .9rem; margin: 0; color: var(--ink); }
.headline strong { font-size: 3.25rem; font-weight: 600; line-height: 1.1; letter-spacing: -.02em;
  white-space: nowrap; }
.headline span { line-height: 1.35; }
.headline em { font-style: normal; color: var(--soft); }
dl { display: flex; flex-wrap: wrap; gap: .75rem 2.25rem; margin: 1.25rem 0 0; }
dt { font-size: .8rem; color: var(--soft); }
dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 400; line-height: 1.25; vertical-align: bottom; }
th[scope=row], th.text, td.text { text-align: left; overflow-wrap: anywhere; }
th:first-child { padding-left: 0; min-width: 9.5rem; }
th[scope=row] { font-weight: 500; }
tfoot tr:first-child > * { border-top: 2px solid var(--line); }
tfoot small { display: block; }
.bar { min-width: 5.6rem;
  background: linear-gradient(90deg, rgb(var(--hit) / .16) calc(var(--v) * 100%), transparent 0); }
table.confusion { border-collapse: separate; border-spacing: 2px; }
.confusion th, .confusion td { border: 0; }
.confusion td { min-width: 2.6rem; height: 2.1rem; padding: 0 .3rem; text-align: center; vertical-align: middle;
  background: var(--panel); border-radius: 2px; }
.confusion thead td { background: var(--paper); }
.confusion thead th { padding: 0 0 .35rem; text-align: center; }
.confusion thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 12rem; line-height: 1.2; }
.confusion th[scope=row] { position: sticky; left: 0; min-width: 0; padding: 0 .6rem 0 0; background: var(--paper);
  text-align: right; vertical-align: middle; white-space: nowrap; font-weight: 400; }
.confusion td.own { box-shadow: inset 0 0 0 1px var(--line); }
.confusion .hit { background: rgb(var(--hit) / calc(.1 + .85 * var(--s))); }
.confusion .miss { background: rgb(var(--miss) / calc(.14 + .8 * var(--s))); }
.confusion .strong { color: #fff; }
.dense { max-height: 88vh; overflow: auto; }
.dense table.confusion { border-spacing: 1px; font-size: .62rem; line-height: 1; }
.dense thead > * > * { position: sticky; top: 0; z-index: 1; background: var(--paper); }
.dense thead td { left: 0; z-index: 2; }
.dense td { min-width: .95rem; width: .95rem; height: .95rem; padding: 0; border-radius: 1px; }
.beside { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1rem 2rem; align-items: center; }
.beside p { font-size: .87rem; }
.plot { min-width: 22rem; }
.plot.wide { min-width: 34rem; }
.plot svg { display: block; width: 100%; height: auto; overflow: visible; }
.legend { list-style: none; margin: 0 0 1rem; padding: 0; font-size: .87rem; }
.legend li { display: flex; gap: .6rem; align-items: baseline; padding: .12rem 0; }
.legend i { flex: none; width: 1.1rem; height: .22rem; border-radius: 1px; align-self: center; }
.legend span { flex: 1; overflow-wrap: anywhere; }
.legend b { font-weight: 500; font-variant-numeric: tabular-nums; }
.legend.inline { display: flex; gap: 1.5rem; margin: .5rem 0 0; }
figure { margin: 0 0 1.5rem; break-inside: avoid; }
figcaption { margin-top: .35rem; font-size: .87rem; }
figcaption b { font-weight: 600; }
figcaption small { display: block; overflow-wrap: anywhere; }
.strip { display: grid; grid-template-columns: repeat(6, minmax(0, 160px)); gap: 3px; }
.strip img { display: block; width: 100%; border-radius: 2px; }
.problem { color: rgb(var(--miss)); font-size: .87rem; overflow-wrap: anywhere; }
@media (max-width: 46rem) { body { padding: 1.5rem 1rem 3rem; } .beside { grid-template-columns: minmax(0, 1fr); }
  .headline strong { font-size: 2.5rem; } .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); }
  th, td { padding-left: .45rem; padding-right: .45rem; } }
@media print { .dense { zoom: .38; max-height: none; } body { max-width: none; padding: 0; font-size: 10pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } .scroll { overflow: visible; }
  tfoot { display: table-row-group; } tr, .beside, .confusion { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""
