"""Committed results: weights and masks are found and used, children belong to their parents, and `nladv keep`."""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from nladv_core import campaign, cli, experiments, kept, pilot, runs
from nladv_core import store as stores
from nladv_core.errors import RecordError
from nladv_core.recipes import UNTRAINED, Recipe
from nladv_core.runs import RecordWarning, RunSpec, Store, compute, run

PARENT = RunSpec(
    data="digits",
    net="resnet8",
    width=0.125,
    size=8,
    train=96,
    test=50,
    recipe=Recipe(epochs=2, lr=0.05, batch=32, flip=False),
)
CHILD = replace(PARENT, parent=PARENT, omega=2.0)
OTHER = replace(PARENT, parent=PARENT, omega=3.0)
RETRAINED = replace(PARENT, seed=1, parent=CHILD, masks="exact")
ON_WEIGHTS = replace(PARENT, seed=1, parent=CHILD, masks="exact", weights=replace(PARENT, seed=1))
ALL = [PARENT, CHILD, RETRAINED, ON_WEIGHTS]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("filled"), also=())
    run(ALL, store, progress=False, workers=1)
    return store


@pytest.fixture
def data(filled: Store, tmp_path: Path) -> Path:
    """Committed: all records with their masks, and the parent's weights."""
    results, parents = tmp_path / "data" / "results" / "reduced", tmp_path / "data" / "parents"
    results.mkdir(parents=True)
    parents.mkdir()
    for path in [*filled.folder.glob("*.json"), *filled.folder.glob("*.masks.safetensors")]:
        shutil.copy(path, results)
    shutil.copy(filled.folder / f"{PARENT.key()}.weights.safetensors", parents / f"{PARENT.key()}.safetensors")
    return tmp_path / "data"


def committed(data: Path, live: str = "live") -> Store:
    return Store(data.parent / live, also=[data / "results" / "reduced"], parents=data / "parents")


def sealed(path: Path, **more: Any) -> None:
    """Write a record with some fields changed, with the checksum of its text."""
    content = json.loads(path.read_text()) | more
    content.pop("sha256", None)
    path.write_bytes(stores._sealed(json.dumps(content, separators=(",", ":"))))


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("computed although it is stored")


def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of what is computed from now on."""
    keys: list[str] = []
    really = runs.compute
    monkeypatch.setattr(runs, "compute", lambda spec, *a, **more: keys.append(spec.key()) or really(spec, *a, **more))
    return keys


# ------------------------------------------------------------------------------------- weights that are committed


@pytest.mark.parametrize("workers", [1, 2])
def test_a_child_is_computed_from_committed_weights_without_training_its_parent(
    data: Path, filled: Store, workers: int
) -> None:
    live = committed(data)
    others = [OTHER, replace(OTHER, omega=4.0)][:workers]
    run(others, live, progress=False, workers=workers)
    assert {path.stem for path in live.folder.glob("*.json")} == {spec.key() for spec in others}
    assert live.record(OTHER).parent == {
        "key": PARENT.key(),
        "sha256": filled.record(PARENT).files["weights"]["sha256"],
    }
    weights = filled.weights(PARENT)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in live.weights(PARENT).items())
    assert sum(p.numel() for p in live.network(PARENT).parameters()) > 0


def test_without_the_committed_weights_the_parent_is_trained_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = trained(monkeypatch)
    run([OTHER], Store(data.parent / "live", also=[data / "results" / "reduced"]), progress=False, workers=1)
    assert keys == [PARENT.key(), OTHER.key()], "a folder of parents is not guessed where records are given"


def test_masks_of_a_committed_record_are_taken_without_its_weights(
    data: Path, filled: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, keys = committed(data), trained(monkeypatch)
    again = replace(RETRAINED, seed=2)
    run([again], live, progress=False, workers=1)
    assert keys == [again.key()]
    masks = filled.masks(CHILD)
    assert all(torch.equal(mask, masks[name]) for name, mask in live.masks(again).items())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


HARM: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a bit": (flip_a_bit, "checksum is not the record's"),
    "another network's": (lambda path: path.write_bytes(save({"fc.weight": torch.zeros(1)})), "checksum is not"),
    "a pickle": (lambda path: torch.save({"fc.weight": torch.zeros(1)}, path), "checksum is not the record's"),
    "gone": (Path.unlink, "missing, and so is"),
}


@pytest.mark.parametrize("harm", HARM)
def test_damaged_committed_weights_are_named_and_never_used(
    data: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    spoil, told = HARM[harm]
    path = data / "parents" / f"{PARENT.key()}.safetensors"
    spoil(path)
    live, keys = committed(data), trained(monkeypatch)
    with pytest.raises(RecordError, match=told) as error:
        live.weights(PARENT)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    run([OTHER], live, progress=False, workers=1)
    assert keys == [PARENT.key(), OTHER.key()]


def test_a_pickle_with_the_right_checksum_is_not_opened_as_one(data: Path) -> None:
    path = data / "parents" / f"{PARENT.key()}.safetensors"
    torch.save({"fc.weight": torch.zeros(1)}, path)
    record = data / "results" / "reduced" / f"{PARENT.key()}.json"
    name = f"{PARENT.key()}.weights.safetensors"
    sealed(record, files={"weights": {"name": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}})
    with pytest.raises(RecordError, match="is not a safetensors file"):
        committed(data).weights(PARENT)


def test_no_name_of_a_record_leads_outside(data: Path) -> None:
    record = data / "results" / "reduced" / f"{PARENT.key()}.json"
    files = json.loads(record.read_text())["files"]
    sealed(record, files={"weights": files["weights"] | {"name": f"../../parents/{PARENT.key()}.safetensors"}})
    with pytest.raises(RecordError, match="expected a plain name"):
        committed(data).weights(PARENT)


def test_the_project_s_own_folder_of_parents_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stores.places, "project_root", lambda: tmp_path)
    assert Store().parents == tmp_path / "data" / "parents"
    assert Store(also=()).parents is None and Store(also=(), parents="x").parents == Path("x").absolute()


# ------------------------------------------------------------------------------------------ whose child a record is


def another(folder: Path, spec: RunSpec, what: str, change: Callable[[Any], Any] | None = None) -> None:
    """Put another network's weights or masks under the key of a run: whole, sound, and not those that were there."""
    path, record = folder / f"{spec.key()}.{what}.safetensors", folder / f"{spec.key()}.json"
    tensors = {name: tensor.clone() for name, tensor in stores.tensors_in(path.read_bytes(), path).items()}
    if change is None:
        first = tensors[sorted(tensors)[0]]
        first.copy_(~first if first.dtype == torch.bool else first + 1)
    content = save(tensors if change is None else change(tensors))
    path.write_bytes(content)
    files = json.loads(record.read_text())["files"]
    sealed(record, files=files | {what: files[what] | {"sha256": hashlib.sha256(content).hexdigest()}})


@pytest.fixture
def live(filled: Store, tmp_path: Path) -> Store:
    shutil.copytree(filled.folder, tmp_path / "runs")
    return Store(tmp_path / "runs", also=())


# The child, the run that it took something of, and what that was.
TAKEN = [(CHILD, PARENT, "weights"), (RETRAINED, CHILD, "masks"), (ON_WEIGHTS, replace(PARENT, seed=1), "weights")]


@pytest.mark.parametrize(("child", "source", "what"), TAKEN)
def test_a_child_of_another_parent_is_refused_and_both_are_named(
    live: Store, child: RunSpec, source: RunSpec, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "CHAPTERS", {})  # of which `why` would tell
    assert live.state(child) == live.state(child.key()) == "done"
    another(live.folder, source, what)
    assert live.state(child) == live.state(child.key()) == "damaged" and live.state(source) == "done"
    with pytest.raises(RecordError, match=f"took {what} of run .*do not belong together; delete") as told:
        live.record(child)
    for named in (child.key(), source.key(), f"{live.folder / child.key()}.json", f"{child.key()}.masks.safetensors"):
        assert named in str(told.value)
    assert "\n" not in str(told.value)
    with pytest.raises(RecordError, match="do not belong together"):
        live.masks(child)
    with pytest.warns(RecordWarning, match=f"left out: .*{child.key()}.*{source.key()}"):
        assert child.key() not in set(live.frame([child, source])["key"])
    assert "do not belong together" in campaign.why(child.key(), live)


@pytest.mark.parametrize(("child", "source", "what"), TAKEN)
def test_it_is_set_aside_and_computed_again(live: Store, child: RunSpec, source: RunSpec, what: str) -> None:
    another(live.folder, source, what)
    with pytest.warns(RecordWarning, match=rf"run {child.key()}.*set aside as {child.key()}\.json\.damaged"):
        run([child], live, progress=False, workers=1)
    assert live.state(child) == "done"
    assert live.record(source).files[what]["sha256"] in live.record(child).parent.values()  # type: ignore[union-attr]
    assert (live.folder / f"{child.key()}.json.damaged").is_file()


def test_of_a_committed_child_the_sentence_names_what_to_delete(data: Path) -> None:
    results = data / "results" / "reduced"
    shutil.copy(data / "parents" / f"{PARENT.key()}.safetensors", results / f"{PARENT.key()}.weights.safetensors")
    another(results, PARENT, "weights")
    (data / "parents" / f"{CHILD.key()}.safetensors").touch()
    store = committed(data)
    with pytest.raises(RecordError) as told:
        store.record(CHILD)
    for path in (f"{CHILD.key()}.json", f"{CHILD.key()}.masks.safetensors", f"parents/{CHILD.key()}.safetensors"):
        assert path in str(told.value)
        (results / path if "/" not in path else data / path).unlink()
    assert store.state(CHILD) == "missing"


def test_a_committed_child_of_another_parent_is_computed_in_the_live_folder(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "CHAPTERS", {})
    results = data / "results" / "reduced"
    shutil.copy(data / "parents" / f"{PARENT.key()}.safetensors", results / f"{PARENT.key()}.weights.safetensors")
    another(results, PARENT, "weights")
    store, before = committed(data), sorted(results.iterdir())
    assert "computed again in " in campaign.why(CHILD.key(), store)
    run([CHILD], store, progress=False, workers=1)
    assert store.state(CHILD) == "done" and (store.folder / f"{CHILD.key()}.json").is_file()
    assert sorted(results.iterdir()) == before


def test_a_record_belongs_to_any_copy_of_its_parent_that_is_stored(data: Path, filled: Store) -> None:
    """A parent whose weights were not committed is trained again here, perhaps to other bits: its children stay."""
    store = committed(data)
    store.folder.mkdir()
    for path in filled.folder.glob(f"{PARENT.key()}.*"):
        shutil.copy(path, store.folder)
    another(store.folder, PARENT, "weights")
    assert store.state(CHILD) == "done" and store.committed(CHILD.key()) and store.record(CHILD).key
    for path in filled.folder.glob(f"{CHILD.key()}.*"):
        shutil.copy(path, store.folder)
    assert store.state(CHILD) == "done" and not store.committed(CHILD.key()), "made of the committed one"
    (data / "results" / "reduced" / f"{PARENT.key()}.json").unlink()
    assert store.state(CHILD) == "damaged"
    for path in store.folder.glob(f"{PARENT.key()}.*"):
        path.unlink()
    assert store.state(CHILD) == "done", "nothing is known of its parent"


def test_children_of_a_parent_that_came_out_otherwise_are_computed_again_in_the_same_call(live: Store) -> None:
    another(live.folder, PARENT, "weights")
    with pytest.warns(RecordWarning):
        run([CHILD, RETRAINED], live, progress=False, workers=1)
    odd = live.record(CHILD).parent
    for path in live.folder.glob(f"{PARENT.key()}.*"):
        path.unlink()
    with pytest.warns(RecordWarning, match="set aside"):
        frame = run([CHILD, RETRAINED, PARENT], live, progress=False, workers=1)
    assert set(frame["key"]) == {CHILD.key(), RETRAINED.key(), PARENT.key()}
    assert live.record(CHILD).parent != odd


def test_older_code_is_replaced_without_a_word_also_if_its_parent_was_before(
    live: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = stores.code_version()
    another(live.folder, PARENT, "weights")
    with pytest.warns(RecordWarning):
        run([CHILD], live, progress=False, workers=1)
    odd = live.record(CHILD).parent
    for path in live.folder.glob("*.damaged"):
        path.unlink()
    for module in (stores, runs):
        monkeypatch.setattr(module, "code_version", lambda: now | {"source": "another"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run([CHILD], live, progress=False, workers=1, refresh=True)
    assert live.state(CHILD) == "done" and not list(live.folder.glob("*.damaged"))
    assert live.record(CHILD).parent != odd


PARENTS: dict[str, tuple[Any, str]] = {
    "a number": (5, "not given by key and sha256"),
    "a list": (["key"], "not given by key and sha256"),
    "numbers within": ({"key": 1, "sha256": 2}, "not given by key and sha256"),
    "nothing within": ({}, "names "),
    "another run": ({"key": "0" * 12, "sha256": "0" * 64}, f"its specification names {PARENT.key()}"),
    "a path": ({"key": "../secret", "sha256": "0" * 64}, f"its specification names {PARENT.key()}"),
    "no checksum": ({"key": PARENT.key()}, "do not belong together"),
    "weights besides": (
        {"key": PARENT.key(), "sha256": "", "weights_key": "0" * 12},
        "do not belong together|its specification names no run",
    ),
}


@pytest.mark.parametrize("parent", PARENTS)
def test_a_parent_that_is_none_is_refused(live: Store, parent: str) -> None:
    given, told = PARENTS[parent]
    sealed(live.folder / f"{CHILD.key()}.json", parent=given)
    assert live.state(CHILD) == "damaged"
    with pytest.raises(RecordError, match=told):
        live.record(CHILD)


def test_published_parents_are_left_alone(live: Store) -> None:
    origin = {"published": "x", "source": "y", "url": "z", "sha256": "0" * 64}
    sealed(live.folder / f"{CHILD.key()}.json", parent=origin)
    assert live.state(CHILD) == "done" and live.record(CHILD).parent == origin


def test_every_committed_record_reads_and_belongs_to_its_parent(tmp_path: Path) -> None:
    results = Path(stores.__file__).parents[1] / "data" / "results"
    folders = sorted(path for path in results.iterdir() if path.is_dir())
    store = Store(tmp_path, also=folders)
    keys = {path.stem for path in results.glob("*/*.json") if re.fullmatch("[0-9a-f]{12}", path.stem)}
    assert keys == set(store.keys()) and keys
    assert {store.state(key) for key in keys} == {"done"}
    records = [store.record(key) for key in keys]
    named = [record.parent["key"] for record in records if record.parent and "key" in record.parent]
    assert set(named) <= keys


def test_the_record_of_a_parent_is_read_once_for_all_its_children(live: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((live.folder / f"{CHILD.key()}.json").read_text())
    children = [replace(CHILD, omega=2.0 + number) for number in range(1, 40)]
    for child in children:
        (live.folder / f"{child.key()}.json").write_text(
            json.dumps(
                {k: v for k, v in record.items() if k != "sha256"} | {"key": child.key(), "spec": child.to_json()}
            )
        )
    read, really = list[Path](), stores._content
    monkeypatch.setattr(stores, "_content", lambda path: read.append(path) or really(path))
    assert {live.state(child) for child in children} == {"done"}
    assert len(read) == len(children) + 1
    another(live.folder, PARENT, "weights")
    assert {live.state(child) for child in children} == {"damaged"}, "and again once it has changed"


# ------------------------------------------------------------------------------------- what a computation refuses


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"of_another.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("masks", ["exact", "layer", "global"])
def test_masks_of_another_network_are_refused(live: Store, masks: str) -> None:
    another(live.folder, CHILD, "masks", renamed)
    again = replace(RETRAINED, seed=2, masks=masks)
    with pytest.raises(RecordError, match=f"masks of run {CHILD.key()}.* another network's.*do not fit") as told:
        compute(again, live, device="cpu")
    assert "\n" not in str(told.value) and live.state(again) == "missing"


def test_a_parent_with_another_s_weights_is_refused(live: Store) -> None:
    for spec, child in ((PARENT, OTHER), (CHILD, replace(OTHER, parent=CHILD))):
        another(live.folder, spec, "weights", renamed)
        with pytest.raises(RecordError, match=rf"weights of run {spec.key()}.* do not fit the network|not belong"):
            compute(child, live, device="cpu")
    shutil.copy(
        live.folder / f"{RETRAINED.key()}.weights.safetensors", live.folder / f"{PARENT.key()}.weights.safetensors"
    )
    with pytest.raises(RecordError, match="its checksum is not the record's"):
        compute(OTHER, live, device="cpu")


def test_a_parent_that_is_not_its_own_parent_s_is_refused(live: Store) -> None:
    another(live.folder, PARENT, "weights")
    for child in (replace(OTHER, parent=CHILD), replace(RETRAINED, seed=2)):
        with pytest.raises(RecordError, match="do not belong together"):
            compute(child, live, device="cpu")


# ------------------------------------------------------------------------------------------------------ nladv keep


@pytest.fixture
def tier(monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """What the tier `reduced` wants: two linearizations of one parent, and a retraining."""
    specs = [RETRAINED, ON_WEIGHTS, OTHER]
    monkeypatch.setattr(campaign, "wanted", lambda tier: specs)
    return specs


def keep(store: Store, data: Path, tier: str = "reduced") -> list[str]:
    said: list[str] = []
    kept.keep(tier, store, data=data, say=said.append)
    return said


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_finished_runs_are_copied_with_masks_and_the_weights_of_parents(
    filled: Store, tier: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = keep(filled, tmp_path)
    linearized = [CHILD, RETRAINED, ON_WEIGHTS]
    names = {f"results/reduced/{spec.key()}.json" for spec in [PARENT, replace(PARENT, seed=1), *linearized]}
    names |= {f"results/reduced/{spec.key()}.masks.safetensors" for spec in linearized}
    names |= {f"parents/{spec.key()}.safetensors" for spec in (PARENT, replace(PARENT, seed=1))}
    assert set(tree(tmp_path)) == names
    for name, content in tree(tmp_path / "results" / "reduced").items():
        assert content == (filled.folder / name).read_bytes()
    assert len(said) == 6 and said[0].startswith(f"copied {PARENT}: ") and f"parents/{PARENT.key()}.safetens" in said[0]
    assert "5 of 5 runs in" in said[-1] and "5 of 6 wanted runs are in" in said[-1]
    store = committed(tmp_path)
    assert {store.state(spec) for spec in linearized} == {"done"} and store.masks(CHILD)
    keys = trained(monkeypatch)
    run([OTHER], store, progress=False, workers=1)
    assert keys == [OTHER.key()]


def test_doing_it_again_writes_nothing_and_sweeps_what_a_killed_one_left(
    filled: Store, tier: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(filled, tmp_path)
    before = tree(tmp_path)
    (tmp_path / "parents" / f"{PARENT.key()}.safetensors.1.tmp").touch()
    monkeypatch.setattr(kept, "write", never)
    assert keep(filled, tmp_path) == [line for line in keep(filled, tmp_path) if not line.startswith("copied")]
    assert tree(tmp_path) == before


@pytest.mark.parametrize("number", range(8))
def test_killed_between_two_files_it_goes_on(
    filled: Store, tier: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    left, really = [number], kept.write

    def killed(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        really(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kept, "write", killed)
        keep(filled, tmp_path / "killed")
    store = Store(tmp_path / "live", also=[tmp_path / "killed" / "results" / "reduced"])
    for record in store.records():  # whoever has its record has its masks
        assert not record.spec.linearized or store.masks(record.key)
    keep(filled, tmp_path / "killed")
    keep(filled, tmp_path / "whole")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_linearized_networks_to_show_keep_their_weights(
    filled: Store, tier: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar = RunSpec(data="cifar10", net="resnet20", recipe=PARENT.recipe)
    for spec, expected in (
        (cifar, False),
        (replace(cifar, omega=0.1), True),
        (replace(cifar, omega=0.1, seed=1), False),
        (replace(cifar, omega=0.1, data="cifar100"), False),
        (replace(cifar, omega=0.1, net="resnet32"), False),
    ):
        assert kept.shown(spec) == expected
    monkeypatch.setattr(kept, "shown", lambda spec: spec == CHILD)
    keep(filled, tmp_path)
    shown = committed(tmp_path).network(CHILD)
    weights = filled.weights(CHILD)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in shown.state_dict().items())


def test_weights_of_published_networks_are_not_kept() -> None:
    name = "akamaster/resnet20"
    origin = RunSpec(data="cifar10", net="resnet20v1", recipe=UNTRAINED, published=name)
    child = replace(origin, published=None, parent=origin, recipe=PARENT.recipe, omega=0.1)
    assert kept.with_weights([origin, child, PARENT, CHILD, replace(PARENT, seed=5)]) == {PARENT.key()}


def test_the_pilot_s_runs_are_kept_without_weights(
    filled: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot, "specs", lambda: [CHILD])
    keep(filled, tmp_path, "pilot")
    names = [f"{PARENT.key()}.json", f"{CHILD.key()}.json", f"{CHILD.key()}.masks.safetensors"]
    assert set(tree(tmp_path)) == {f"results/pilot/{name}" for name in names}


def test_a_committed_file_with_another_content_stays_and_nothing_is_copied(
    filled: Store, tier: list[RunSpec], tmp_path: Path
) -> None:
    record = f"results/reduced/{CHILD.key()}.json"
    metrics = filled.record(CHILD).metrics
    for name, harm in {
        record: lambda path: sealed(path, metrics=metrics | {"napl": 0.0}),
        f"results/reduced/{CHILD.key()}.masks.safetensors": flip_a_bit,
        f"parents/{PARENT.key()}.safetensors": flip_a_bit,
    }.items():
        data = tmp_path / name.replace("/", "-")
        keep(filled, data)
        harm(data / name)
        (data / "results" / "reduced" / f"{RETRAINED.key()}.json").unlink()
        before = tree(data)
        with pytest.raises(RecordError, match="nothing was copied") as told:
            keep(filled, data)
        assert str(data / name) in str(told.value) and "\n" not in str(told.value) and tree(data) == before
    other = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / record.replace("/", "-") / "results" / "reduced", other / "results" / "paper")
    with pytest.raises(RecordError, match="another result"):
        keep(filled, other)


def test_the_same_result_computed_again_leaves_the_committed_record_as_it_is(
    filled: Store, tier: list[RunSpec], tmp_path: Path
) -> None:
    keep(filled, tmp_path)
    sealed(tmp_path / "results" / "reduced" / f"{CHILD.key()}.json", wall_s=1e6, torch="1.0", created="before")
    (tmp_path / "parents" / f"{PARENT.key()}.safetensors").unlink()
    before = tree(tmp_path)
    keep(filled, tmp_path)
    assert tree(tmp_path).items() > before.items() and len(tree(tmp_path)) == len(before) + 1


@pytest.mark.parametrize("what", ["weights", "masks"])
def test_a_damaged_run_is_not_copied(live: Store, tier: list[RunSpec], tmp_path: Path, what: str) -> None:
    spec = PARENT if what == "weights" else CHILD
    flip_a_bit(live.folder / f"{spec.key()}.{what}.safetensors")
    with pytest.raises(RecordError, match=f"{spec.key()}.{what}.safetensors: its checksum is not the record's"):
        keep(live, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_too_much_for_a_repository_is_refused(
    filled: Store, tier: list[RunSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (kept.MOST, kept.MOST_IN_ALL) == (4_000_000, 60_000_000)
    size = (filled.folder / f"{PARENT.key()}.weights.safetensors").stat().st_size
    for name, most, told in (
        ("MOST", size - 1, "at most .* MB are kept in one file"),
        ("MOST_IN_ALL", 2 * size - 1, "at most .* MB of weights are kept"),
    ):
        with monkeypatch.context() as patch, pytest.raises(RecordError, match=f"{told}.*nothing was copied"):
            patch.setattr(kept, name, most)
            keep(filled, tmp_path / "data")
        assert not (tmp_path / "data").exists()
    monkeypatch.setattr(kept, "MOST_IN_ALL", 2 * size)
    keep(filled, tmp_path / "data")


@pytest.mark.parametrize("name", ["smoke", "quick", "huge"])
def test_tiers_of_which_nothing_is_kept_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keep", "--tier", name]) == 2
    told = capsys.readouterr().err
    assert f"nothing is kept of tier '{name}'" in told and "reduced, paper, pilot" in told and told.count("\n") == 1


def test_the_command_takes_a_folder(
    filled: Store,
    tier: list[RunSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kept.places, "project_root", lambda: tmp_path)
    assert cli.main(["keep", "--tier", "reduced", "--store", str(filled.folder)]) == 0
    assert f"copied {CHILD}" in capsys.readouterr().out
    assert (tmp_path / "data" / "results" / "reduced" / f"{CHILD.key()}.json").is_file()
    assert cli.main(["keep", "--tier", "reduced", "--store", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert cli.main(["keep", "--tier", "reduced"]) == 0, "the live store, which is empty here"
