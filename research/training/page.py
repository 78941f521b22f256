"""The HTML of a report: plain functions from values to markup. All of them escape their texts."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# Even a mistake in escaping could load and run nothing under this policy.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
READ = "Move over a curve to read its values."
LONG_LIST = 6  # values; longer lists are folded

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--text:#1c2430;
--soft:#667085;--edge:#e3e6eb;--good:#1d8a52;--bad:#c2413b}
@media(prefers-color-scheme:dark){:root{--page:#12151a;--card:#1b2027;--text:#e4e8ee;
--soft:#98a2b3;--edge:#2c333d;--good:#4cc48a;--bad:#f07a74}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;margin:0}
h2{font-size:17px;margin:36px 0 12px}
small,.soft{color:var(--soft);font-weight:400}
code,pre,td{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:24px}
.tile,figure,.sample,table{background:var(--card);border:1px solid var(--edge);border-radius:10px}
.tile{padding:12px 16px;container-type:inline-size}
.tile b{display:block;font-size:clamp(15px,15cqi,24px);font-weight:650;
font-variant-numeric:tabular-nums;white-space:nowrap}
.tile span{display:block;font-size:12px;color:var(--soft)}
.good b,.good .note{color:var(--good)}
.bad b,.bad .note{color:var(--bad)}
.warning{border-left:4px solid var(--bad);padding:8px 14px;background:var(--card)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:16px}
figure{margin:0;padding:14px 14px 6px}
figure svg{width:100%;height:auto;display:block}
figcaption{font-weight:600}
.sample{padding:12px 16px;margin:0 0 12px}
.sample pre{margin:6px 0 0;white-space:pre-wrap;overflow-wrap:anywhere;
max-height:24em;overflow:auto}
.sample .prompt{color:var(--soft)}
table{border-collapse:separate;border-spacing:0;width:100%;overflow:hidden}
td,th{text-align:left;vertical-align:top;padding:4px 14px;border-top:1px solid var(--edge);
overflow-wrap:anywhere}
tr:first-child>*{border-top:0}
th{font-weight:500;color:var(--soft);width:32%;font-size:13px}
.numbers th,.numbers td{width:auto;white-space:nowrap}
.numbers td{text-align:right;font-variant-numeric:tabular-nums}
.numbers td.wide{width:330px;padding-top:0;padding-bottom:0}
.numbers thead th{font-size:12px}
.numbers thead .number{text-align:right}
.numbers svg{width:300px;height:22px;display:block}
.times td:nth-of-type(-n+2){text-align:right;white-space:nowrap}
.times th{width:auto;white-space:nowrap}
h3{font-size:15px;margin:22px 0 8px}
del{color:var(--bad)}
ins{color:var(--good);text-decoration:none}
summary{cursor:pointer;color:var(--soft);padding:4px 0}
footer{margin-top:40px;color:var(--soft);font-size:12px}
:focus-visible{outline:2px solid #4c8bf5;outline-offset:2px}
@media(max-width:640px){main{padding:20px 14px 40px}td,th{padding:4px 8px}
figure svg{overflow:visible}.charts .graft-plot text{font-size:17px}
.numbers{display:block;overflow-x:auto}
.numbers th:first-child{position:sticky;left:0;background:var(--card);
white-space:normal;min-width:9em}}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--text:#1c2430;
--soft:#667085;--edge:#e3e6eb;--good:#1d8a52;--bad:#c2413b}
.charts{grid-template-columns:1fr 1fr}figure,.tile,.sample,tr{break-inside:avoid}
h2{break-after:avoid}.numbers{display:table}details:not([open]){display:none}
figure svg{overflow:visible}.charts .graft-plot text{font-size:16px}
.facts{display:block;columns:2;column-gap:20px;border:0}
.facts th,.facts td{font-size:10px;padding:1px 6px}.facts th{width:45%}footer{display:none}}
"""


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str]], footer: str = READ) -> str:
    """A whole HTML document from (heading, markup) sections. A section without markup is left out,
    heading included."""
    headed = (
        (f"<h2>{escape(head)}</h2>" if head else "", markup) for head, markup in sections if markup
    )
    body = "".join(f"<section>{head}{markup}</section>" for head, markup in headed)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>"
        f'<header><h1>{escape(title)}</h1><div class="soft">{escape(subtitle)}</div></header>'
        f"{body}<footer>{escape(footer)}</footer></main></body></html>\n"
    )


def tile(label: str, value: str, note: str = "", mood: str = "") -> str:
    """A headline number; `mood` is "good", "bad" or nothing."""
    words = f"<span>{escape(label)}</span><b>{escape(value)}</b>"
    beside = f'<span class="note">{escape(note)}</span>'
    return f'<div class="tile {escape(mood)}">{words}{beside}</div>'


def sample_card(step: int, prompt: str, text: str) -> str:
    """A sample, its prompt set apart from what the model wrote."""
    return (
        f'<div class="sample"><small>step {step:,}</small>'
        f'<pre><span class="prompt">{escape(prompt)}</span>{escape(text)}</pre></div>'
    )


def facts_table(facts: Mapping[str, Any]) -> str:
    """Names and values in two columns, long lists folded; "" for none."""
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{_value(value)}</td></tr>" for name, value in facts.items()
    )
    return f'<table class="facts">{rows}</table>' if rows else ""


def diff_table(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The names whose values differ, with both values; a sentence where none does."""
    names = [
        name
        for name in dict.fromkeys([*old, *new])
        # A field that is absent differs from one that is null.
        if (name in old, old.get(name)) != (name in new, new.get(name))
    ]
    if not names:
        return "<p>Both configurations are equal.</p>"
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        f"<td>{f'<del>{_value(old[name])}</del>' if name in old else ''}</td>"
        f"<td>{f'<ins>{_value(new[name])}</ins>' if name in new else ''}</td></tr>"
        for name in names
    )
    return f"<table>{rows}</table>"


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # Such as the names of the held-out files, of which a folder may have many.
    if isinstance(value, list | tuple) and len(value) > LONG_LIST:
        return f"<details><summary>{len(value)} values</summary>{escape(text)}</details>"
    return escape(text)
