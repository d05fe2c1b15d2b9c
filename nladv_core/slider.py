"""Drawings to be moved by hand: the unit on its way from ReLU to line, and active layers epoch by epoch.

Plain HTML, SVG and a few lines of script, no library. They take their colours from the page, so that they are legible
in the dark scheme, and they work from the keyboard.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence

import numpy as np

from nladv_core.effects import longest_run, strong_layers
from nladv_core.errors import RecordError


class Html:
    """A piece of HTML that a notebook shows as such."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return "an interactive drawing; open the page in a browser"


def unit_slider(margin: float = 0.01) -> Html:
    """A drawing of φ_α with a slider for α and a button that plays it; beyond 1 - margin the unit locks."""
    return Html(_PAGE.replace("MARGIN", f"{margin:g}"))


def layer_slider(shares: Mapping[str, np.ndarray], stages: Sequence[tuple[str, int, int]] = ()) -> Html:
    """Active shares of all layers as bars, with a slider over the epochs; without scripts the last epoch is drawn.

    Bars above half the largest one, `effects.strong_layers`, are filled; a dashed line marks that half.

    Args:
        shares: title -> [epochs + 1, L] in [0, 1], the first row before the first epoch; one drawing each, one slider.
        stages: name, first layer (from 0) and number of layers, marked in each drawing that has as many layers.

    Raises:
        RecordError: nothing to draw, or drawings with different numbers of epochs.
    """
    if not shares or any(found.ndim != 2 or found.size == 0 for found in shares.values()):
        raise RecordError("found no active shares to draw, expected [epochs + 1, layers] for at least one network")
    if len({len(found) for found in shares.values()}) > 1:
        raise RecordError("the networks differ in their number of epochs, expected one slider's worth; draw them apart")
    shares = {title: np.round(found, 4) for title, found in shares.items()}  # as the script will see them
    last = len(next(iter(shares.values()))) - 1
    said = [
        " ".join(f"{title}: {_in_words(found[epoch])}" for title, found in shares.items()) for epoch in range(last + 1)
    ]
    data = json.dumps({"shares": [found.tolist() for found in shares.values()], "said": said})
    identity = "nladv-layers-" + hashlib.sha256(data.encode()).hexdigest()[:8]
    drawings = [_bars(title, found[-1], stages, 130 * place) for place, (title, found) in enumerate(shares.items())]
    filled = {
        "IDENTITY": identity,
        "HEIGHT": str(130 * len(drawings) + 22),
        "LAST": str(last),
        "DRAWINGS": "\n".join(drawings),
        "SAID": html.escape(said[-1]),
        "DATA": data.replace("</", "<\\/"),
    }
    page = _LAYERS
    for name, value in filled.items():
        page = page.replace(name, value)
    return Html(page)


def _in_words(shares: np.ndarray) -> str:
    strong = strong_layers(shares)
    if not strong.any():
        return "no unit is active any more."
    run = longest_run(strong)[1]
    return (
        f"{int(strong.sum())} of {len(shares)} layers are above half the largest share, {run} of them in one connected "
        "run."
    )


def _bars(title: str, shares: np.ndarray, stages: Sequence[tuple[str, int, int]], top: int) -> str:
    """One drawing, 420 wide and 130 high: bars between y = top + 22 (share 1) and y = top + 112 (share 0)."""
    step = 400 / len(shares)
    strong = strong_layers(shares)
    parts = [f'<g data-top="{top}">', f'<text x="10" y="{top + 14}">{html.escape(title)}</text>']
    for i, share in enumerate(shares):
        size = 90 * float(share)
        name = ' class="strong"' if strong[i] else ""
        place = f'x="{10 + step * (i + 0.08):.2f}" width="{0.84 * step:.2f}"'
        parts.append(f'<rect{name} {place} y="{top + 112 - size:.2f}" height="{size:.2f}"/>')
    parts.append(f'<path class="axis" d="M10 {top + 112}H410"/>')
    half = top + 112 - 45 * float(shares.max())
    parts.append(f'<path class="half" d="M10 0H410" transform="translate(0 {half:.2f})"/>')
    if sum(count for _, _, count in stages) == len(shares):
        for name, first, count in stages:
            if first:
                parts.append(f'<path class="edge" d="M{10 + step * first:.2f} {top + 20}V{top + 128}"/>')
            if count * step > 60:  # a narrower stage has no room for its name
                middle = 10 + step * (first + count / 2)
                parts.append(f'<text x="{middle:.1f}" y="{top + 126}" text-anchor="middle">{html.escape(name)}</text>')
    return "\n".join([*parts, "</g>"])


# The drawing's coordinates: left, x from -2 to 2 and φ from -2 to 2 on 200 x 200; right, α from 0 to 1 and the price
# from 0 to 1 on 150 x 150. In JavaScript `curve` is φ, `dot` the state of the slope on the price's curve.
_PAGE = """\
<div class="nladv-unit" id="nladv-unit" role="group" aria-label="The unit from ReLU to line">
<style>
.nladv-unit { color: var(--pst-color-text-base, currentColor); max-width: 36rem; }
.nladv-unit svg { width: 100%; height: auto; display: block; }
.nladv-unit svg text { fill: currentColor; font: 12px sans-serif; }
.nladv-unit .axis { stroke: currentColor; stroke-opacity: .45; stroke-width: 1; fill: none; }
.nladv-unit .ghost { stroke: currentColor; stroke-opacity: .4; stroke-dasharray: 4 4; fill: none; }
.nladv-unit .curve { stroke: var(--pst-color-primary, #0173b2); stroke-width: 3.5; fill: none; stroke-linejoin: round; }
.nladv-unit .dot { fill: var(--pst-color-primary, #0173b2); }
.nladv-unit.locked .curve { stroke: currentColor; }
.nladv-unit.locked .dot { fill: currentColor; }
.nladv-unit .bar { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; }
.nladv-unit .bar input { flex: 1 1 9rem; min-width: 0; }
.nladv-unit .bar button { min-width: 5rem; padding: .2rem .6rem; }
.nladv-unit .said { min-height: 3em; margin: .3rem 0 0; }
</style>
<svg viewBox="0 0 420 230" aria-hidden="true">
  <path class="axis" d="M10 115H210M110 15V215"/>
  <path class="ghost" d="M10 215L210 15"/>
  <path class="curve" d="M10 115L110 115L210 15"/>
  <text x="206" y="132" text-anchor="end">x</text><text x="116" y="26">φ(x)</text>
  <path class="axis" d="M255 40V190H405"/>
  <path class="price axis" d=""/>
  <circle class="dot" cx="255" cy="40" r="6"/>
  <text x="255" y="30">price √(1 − α)</text><text x="405" y="207" text-anchor="end">slope α</text>
</svg>
<div class="bar">
  <button type="button">Play</button>
  <input type="range" min="0" max="1" step="0.01" value="0"
    aria-label="slope alpha of the unit, from 0, a ReLU, to 1, a straight line">
  <output>α = 0.00</output>
</div>
<p class="said" aria-live="polite"></p>
<noscript>The drawing moves only with scripts switched on; the next figure shows five of its positions.</noscript>
<script>
(() => {
  const root = document.getElementById("nladv-unit"), find = name => root.querySelector(name);
  const input = find("input"), button = find("button"), said = find(".said");
  const price = a => 190 - 150 * Math.sqrt(1 - a);
  let points = "";
  for (let i = 0; i <= 100; i++) points += (i ? "L" : "M") + (255 + 1.5 * i) + " " + price(i / 100).toFixed(1);
  find(".price").setAttribute("d", points);
  const draw = () => {
    const wanted = Number(input.value), locked = wanted > 1 - MARGIN, a = locked ? 1 : wanted;
    find(".curve").setAttribute("d", `M10 ${115 + 100 * a}L110 115L210 15`);
    find(".dot").setAttribute("cx", 255 + 150 * a);
    find(".dot").setAttribute("cy", price(a));
    find("output").textContent = "α = " + a.toFixed(2);
    input.setAttribute("aria-valuetext", locked ? "1, locked" : a.toFixed(2));
    root.classList.toggle("locked", locked);
    const words = locked ? "Inactive: the unit is the identity, locked for good, and costs nothing."
      : a === 0 ? "Active: a plain ReLU, at full price."
      : a < 0.5 ? "Active: a little of the negative side gets through."
      : "Active: nearly a line. The closer, the steeper the price falls.";
    if (said.textContent !== words) said.textContent = words;
  };
  let playing = 0;
  const stop = () => { cancelAnimationFrame(playing); playing = 0; button.textContent = "Play"; };
  const play = () => {
    const from = Number(input.value) >= 1 ? 0 : Number(input.value), start = performance.now();
    button.textContent = "Pause";
    const step = now => {
      const a = Math.min(1, from + (now - start) / 4000);
      input.value = a;
      draw();
      if (a < 1) playing = requestAnimationFrame(step); else stop();
    };
    playing = requestAnimationFrame(step);
  };
  button.addEventListener("click", () => playing ? stop() : play());
  input.addEventListener("input", () => { stop(); draw(); });
  draw();
})();
</script>
</div>
"""

_LAYERS = """\
<div class="nladv-layers" id="IDENTITY" role="group" aria-label="Active share of each layer, epoch by epoch">
<style>
.nladv-layers { color: var(--pst-color-text-base, currentColor); max-width: 36rem; }
.nladv-layers svg { width: 100%; height: auto; display: block; }
.nladv-layers svg text { fill: currentColor; font: 12px sans-serif; }
.nladv-layers rect { fill: none; stroke: currentColor; stroke-opacity: .6; stroke-width: 1; }
.nladv-layers rect.strong { fill: var(--pst-color-primary, #0173b2); stroke: none; }
.nladv-layers .axis { stroke: currentColor; stroke-opacity: .6; stroke-width: 1; fill: none; }
.nladv-layers .half { stroke: currentColor; stroke-opacity: .7; stroke-dasharray: 4 4; fill: none; }
.nladv-layers .edge { stroke: currentColor; stroke-opacity: .4; stroke-dasharray: 1 3; fill: none; }
.nladv-layers .bar { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center; }
.nladv-layers .bar input { flex: 1 1 9rem; min-width: 0; }
.nladv-layers .bar button { min-width: 5rem; padding: .2rem .6rem; }
.nladv-layers .said { min-height: 4.5em; margin: .3rem 0 0; }
</style>
<svg viewBox="0 0 420 HEIGHT" aria-hidden="true">
DRAWINGS
<text x="10" y="HEIGHT" dy="-6">input on the left, output on the right</text>
</svg>
<div class="bar">
  <button type="button">Play</button>
  <input type="range" min="0" max="LAST" step="1" value="LAST" aria-label="epoch of linearization, from 0 to LAST">
  <output>epoch LAST of LAST</output>
</div>
<p class="said" aria-live="polite">SAID</p>
<noscript>The drawing shows the last epoch; it moves only with scripts switched on. The map shows all epochs.</noscript>
<script>
(() => {
  const root = document.getElementById("IDENTITY"), find = name => root.querySelector(name);
  const input = find("input"), button = find("button"), said = find(".said"), last = Number(input.max);
  const data = DATA;
  const draw = () => {
    const epoch = Number(input.value);
    root.querySelectorAll("svg g").forEach((drawing, place) => {
      const shares = data.shares[place][epoch], top = Number(drawing.dataset.top), half = Math.max(...shares) / 2;
      drawing.querySelectorAll("rect").forEach((bar, layer) => {
        const share = shares[layer];
        bar.setAttribute("height", (90 * share).toFixed(2));
        bar.setAttribute("y", (top + 112 - 90 * share).toFixed(2));
        bar.classList.toggle("strong", share > half);
      });
      drawing.querySelector(".half").setAttribute("transform", `translate(0 ${(top + 112 - 90 * half).toFixed(2)})`);
    });
    find("output").textContent = `epoch ${epoch} of ${last}`;
    input.setAttribute("aria-valuetext", `epoch ${epoch} of ${last}`);
    if (said.textContent !== data.said[epoch]) said.textContent = data.said[epoch];
  };
  let playing = 0;
  const stop = () => { clearInterval(playing); playing = 0; button.textContent = "Play"; };
  const play = () => {
    if (Number(input.value) >= last) input.value = 0;
    button.textContent = "Pause";
    draw();
    playing = setInterval(() => {
      input.value = Number(input.value) + 1;
      draw();
      if (Number(input.value) >= last) stop();
    }, Math.max(150, Math.min(700, 4000 / (last + 1))));
  };
  button.addEventListener("click", () => playing ? stop() : play());
  input.addEventListener("input", () => { stop(); draw(); });
  draw();
})();
</script>
</div>
"""
