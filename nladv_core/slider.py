"""The unit on its way from ReLU to line, to be moved by hand: plain HTML, SVG and a few lines of script, no library.

It takes its colours from the page, so that it is legible in the dark scheme, and it works from the keyboard.
"""

from __future__ import annotations


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
