"""Pictures on the page: the same channel across networks, a pair to wipe between, and how sharpness is distributed.

Galleries are plain HTML with a few lines of script and no library: they work offline, take their colours from the page
and show every picture, with its description, where scripts are switched off.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from nladv_core import features as records
from nladv_core import summaries
from nladv_core.errors import SpecError
from nladv_core.features import Features
from nladv_core.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, style
from nladv_core.sharpness import spread_evenly
from nladv_core.slider import Html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"relu": GREY, "weak": BLUE, "strong": ORANGE, "seed": GREEN, "control": PURPLE}


def gallery(
    features: Features,
    *,
    count: int = 8,
    roles: Sequence[str] | None = None,
    caption: str = "",
    quality: int = 88,
) -> Html:
    """The same channels in one network after the other: a row a channel, a column a network; a click enlarges.

    Args:
        features: what `features.explore` or `features.read` returned.
        count: rows, spread evenly over the channels whose pictures there are.
        roles: which networks, in this order; default all.
        caption: below it; the provenance is added.
        quality: of the pictures, WebP.

    Raises:
        SpecError: an unknown role, or a number of rows below 1.
    """
    roles = list(roles) if roles is not None else [net.role for net in features.networks]
    rows = [_row(features, role) for role in roles]
    labels = [features.networks[row].label for row in rows]
    places = _places(features, count)
    lines = [
        f'<div class="head" aria-hidden="true">{"".join(f"<span>{_escape(label)}</span>" for label in labels)}</div>'
    ]
    for place in places:
        channel = features.channels[features.shown[place]]
        pictures = "".join(
            _button(features.images[row, place], describe(features, place, role), quality)
            for row, role in zip(rows, roles, strict=True)
        )
        lines.append(f'<p class="name">{_escape(str(channel))}</p><div class="row">{pictures}</div>')
    body = "\n".join(lines)
    identity = "nladv-gallery-" + hashlib.sha256(body.encode()).hexdigest()[:8]
    page = _GALLERY.replace("IDENTITY", identity).replace("COLUMNS", str(len(roles))).replace("BODY", body)
    pixelated = "pixelated" if features.rendering.size <= 48 else "auto"
    return Html(page.replace("RENDERING", pixelated).replace("CAPTION", _caption(features, caption)))


def before_after(
    features: Features,
    place: int | None = None,
    first: str = "relu",
    second: str = "strong",
    *,
    caption: str = "",
) -> Html:
    """One channel in two networks, one over the other, with a slider that wipes between them.

    Without scripts the two stand side by side.

    Args:
        features: what `features.explore` or `features.read` returned.
        place: position among the shown channels; default the one whose sharpness rises most from `first` to `second`.
        first, second: roles: left, right.
        caption: below it; the provenance is added.

    Raises:
        SpecError: an unknown role, or no such position.
    """
    left, right = _row(features, first), _row(features, second)
    if place is None:
        gain = features.of(second) - features.of(first)
        place = int(np.argmax(gain[list(features.shown)]))
    if not 0 <= place < len(features.shown):
        raise SpecError(f"{features.name} shows {len(features.shown)} channels, but number {place} was asked for")
    labels = [features.networks[row].label for row in (left, right)]
    sources = [_source(features.images[row, place], 92) for row in (left, right)]
    alts = [describe(features, place, role) for role in (first, second)]
    figures = "".join(
        f'<div class="{side}"><img src="{source}" alt="{_escape(alt)}"><span>{_escape(label)}</span></div>'
        for side, source, alt, label in zip(("before", "after"), sources, alts, labels, strict=True)
    )
    identity = "nladv-wipe-" + hashlib.sha256(figures.encode()).hexdigest()[:8]
    channel = features.channels[features.shown[place]]
    said = f"{channel}: from {labels[0]} to {labels[1]}"
    page = _WIPE.replace("IDENTITY", identity).replace("BODY", figures).replace("SAID", _escape(said))
    pixelated = "pixelated" if features.rendering.size <= 48 else "auto"
    told = f"{said}. {caption}".strip()
    return Html(page.replace("RENDERING", pixelated).replace("CAPTION", _caption(features, told)))


def describe(features: Features, place: int, role: str) -> str:
    """What a picture shows, in words: layer, channel and network."""
    channel = features.channels[features.shown[place]]
    return f"Picture that excites {channel}, of {features.title}: {features.networks[_row(features, role)].label}"


def distributions(features: Features, measure: str = "gradient") -> Figure:
    """How a measure of the pictures is distributed over channels: each network, and each minus the ReLU network.

    Left, a dot a channel with the quartiles of each network; right, the paired differences with their mean and its 95 %
    bootstrap interval.
    """
    import matplotlib.pyplot as plt

    from nladv_core.figures import _new, _stamp

    order = [net.role for net in features.networks]
    labels = [net.label.replace(", ", ",\n") for net in features.networks]
    others = [role for role in order if role != "relu"]
    pairs = records.compare(features, measure)
    jitter = np.random.default_rng(0)
    with style():
        figure, (left, right) = _new(1, 2, 3.4, sharey=False, width_ratios=[len(order), len(others)])
        for x, role in enumerate(order):
            found = features.of(role, measure)
            spots = x + jitter.uniform(-0.25, 0.25, len(found))
            left.plot(spots, found, ".", color=COLOURS[role], alpha=0.35, markersize=3.5, markeredgewidth=0)
            low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
            left.plot([x, x], [low, high], color="black", linewidth=3, solid_capstyle="butt")
            left.plot(x, middle, "o", color="white", markersize=4, markeredgecolor="black", markeredgewidth=0.8)
        for x, role in enumerate(others):
            difference = features.of(role, measure) - features.of("relu", measure)
            spots = x + jitter.uniform(-0.25, 0.25, len(difference))
            right.plot(spots, difference, ".", color=COLOURS[role], alpha=0.35, markersize=3.5, markeredgewidth=0)
            pair = pairs[role, "relu"]
            right.errorbar(
                x,
                pair.mean,
                [[pair.mean - pair.low], [pair.high - pair.mean]],
                fmt="D",
                color="black",
                markersize=3.5,
                capsize=3,
                linewidth=1.4,
            )
        right.axhline(0, color=RED, linewidth=0.9)
        left.set(ylabel=_AXES[measure], title="Networks")
        right.set(title="Minus ReLU network")
        names = dict(zip(order, labels, strict=True))
        for axis, roles in ((left, order), (right, others)):
            axis.set_xticks(range(len(roles)), [names[role] for role in roles], rotation=90, fontsize=8)
            axis.grid(axis="x", visible=False)
        plt.close(figure)
        return _stamp(figure, records.provenance(features))


_AXES = {
    "gradient": "mean image gradient, 1/pixel",
    "high_frequency": "power above ¼ cycle/pixel, share",
    "contrast": "contrast (standard deviation)",
    "recognised": "recognised (share of starts)",
}


def table(features: Features, measure: str = "gradient") -> Any:
    """`features.table`, styled for the page."""
    return summaries.styled(records.table(features, measure))


def overview(features: Features) -> Any:
    """`features.overview`, styled for the page."""
    return summaries.styled(records.overview(features))


def _row(features: Features, role: str) -> int:
    row = features.position(role)
    if row is None:
        known = ", ".join(net.role for net in features.networks)
        raise SpecError(f"{features.name} has no network with the role {role!r}, expected one of {known}")
    return row


def _places(features: Features, count: int) -> list[int]:
    shown = [features.channels[place] for place in features.shown]
    return [shown.index(channel) for channel in spread_evenly(shown, count)]


def _source(picture: Tensor, quality: int) -> str:
    """A picture, uint8 [3, H, W], as the address of itself."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "webp", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _button(picture: Tensor, alt: str, quality: int) -> str:
    image = f'<img src="{_source(picture, quality)}" alt="{_escape(alt)}">'
    return f'<button type="button" title="enlarge">{image}</button>'


def _caption(features: Features, caption: str) -> str:
    told = f"{_escape(caption)} " if caption else ""
    return f'{told}<span class="provenance">{_escape(records.provenance(features))}</span>'


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


_GALLERY = """\
<figure class="nladv-gallery" id="IDENTITY">
<style>
#IDENTITY { color: var(--pst-color-text-base, currentColor); margin: 0; max-width: calc(COLUMNS * 8.5rem); }
#IDENTITY .row, #IDENTITY .head { display: grid; gap: .3rem; grid-template-columns: repeat(COLUMNS, minmax(0, 1fr)); }
#IDENTITY .head { font-size: .75rem; line-height: 1.15; position: sticky; top: 0; }
#IDENTITY .head span { overflow-wrap: anywhere; }
#IDENTITY .name { font-size: .75rem; line-height: 1.2; margin: .45rem 0 .1rem; }
#IDENTITY button { background: none; border: 0; cursor: zoom-in; margin: 0; padding: 0; }
#IDENTITY button:focus-visible { outline: 3px solid var(--pst-color-primary, #0173b2); outline-offset: 1px; }
#IDENTITY img, html[data-theme="dark"] .bd-content div.cell_output #IDENTITY img {
  border-radius: 0; display: block; height: auto; image-rendering: RENDERING; padding: 0; width: 100%; }
#IDENTITY dialog { background: var(--pst-color-background, #fff); border: 1px solid currentColor; color: inherit;
  margin: auto; max-width: min(92vw, 34rem); padding: .8rem; width: 100%; }
#IDENTITY dialog p { font-size: .85rem; margin: .5rem 0; }
#IDENTITY dialog button { background: none; border: 1px solid currentColor; border-radius: .2rem; color: inherit;
  cursor: pointer; padding: .15rem .6rem; }
#IDENTITY figcaption { margin-top: .6rem; }
#IDENTITY figcaption .provenance { display: block; }
</style>
BODY
<dialog aria-label="Enlarged picture"><div></div><p></p><button type="button">Close</button></dialog>
<figcaption>CAPTION</figcaption>
<script>
(() => {
  const root = document.getElementById("IDENTITY"), dialog = root.querySelector("dialog");
  for (const button of root.querySelectorAll(".row button")) button.addEventListener("click", () => {
    const image = button.firstElementChild;
    dialog.firstElementChild.replaceChildren(image.cloneNode());
    dialog.querySelector("p").textContent = image.alt;
    dialog.showModal();
  });
  dialog.addEventListener("click", event => {
    if (event.target === dialog || event.target.tagName === "BUTTON") dialog.close();
  });
})();
</script>
</figure>
"""

_WIPE = """\
<figure class="nladv-wipe" id="IDENTITY">
<style>
#IDENTITY { color: var(--pst-color-text-base, currentColor); margin: 0; max-width: 24rem; }
#IDENTITY .stage { display: flex; gap: .4rem; position: relative; }
#IDENTITY .stage > div { flex: 1 1 0; min-width: 0; }
#IDENTITY img, html[data-theme="dark"] .bd-content div.cell_output #IDENTITY img {
  border-radius: 0; display: block; height: auto; image-rendering: RENDERING; padding: 0; width: 100%; }
#IDENTITY span { font-size: .8rem; }
#IDENTITY .on .after { clip-path: inset(0 0 0 var(--cut)); inset: 0; position: absolute; }
#IDENTITY .on .after span { display: block; text-align: right; }
#IDENTITY .on::after { background: #fff; box-shadow: 0 0 0 1px #000; bottom: 1.5rem; content: ""; left: var(--cut);
  position: absolute; top: 0; width: 2px; }
#IDENTITY input { display: none; width: 100%; }
#IDENTITY .on + input { display: block; }
#IDENTITY figcaption { margin-top: .4rem; }
#IDENTITY figcaption .provenance { display: block; font-size: .8rem; }
</style>
<div class="stage">BODY</div>
<input type="range" min="0" max="100" value="50" aria-label="SAID: share of the width that shows the first">
<figcaption>CAPTION</figcaption>
<script>
(() => {
  const root = document.getElementById("IDENTITY");
  const stage = root.querySelector(".stage"), input = root.querySelector("input");
  const draw = () => {
    stage.style.setProperty("--cut", input.value + "%");
    input.setAttribute("aria-valuetext", input.value + " percent");
  };
  stage.classList.add("on");
  input.addEventListener("input", draw);
  draw();
})();
</script>
</figure>
"""
