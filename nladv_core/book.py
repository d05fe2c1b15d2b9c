"""From notebooks to pages: chapters executed by papermill, one by one, then rendered once with Jupyter Book.

Nothing is done twice and nothing is left half done. An executed chapter carries a digest of all it was made from (its
source, the library, its parameters, committed results); it is executed again only when that digest changes. The pages
carry the same kind of digest. Files and folders are written beside their final name and renamed when they are complete.

A build folder holds `notebooks/` (executed chapters), `stage/` (what Jupyter Book reads) and `html/` (the book). A
single notebook becomes a page of its own beside it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from nladv_core.errors import NladvError, SpecError
from nladv_core.places import project_root
from nladv_core.values import nearest

# Packages whose version shows in a chapter's outputs or in a page.
_CHAPTER_PACKAGES = (
    *("torch", "numpy", "pandas", "matplotlib", "seaborn", "scikit-learn"),
    *("torchvision", "timm", "onnx", "onnxscript", "onnxruntime"),
)
_PAGE_PACKAGES = ("jupyter-book", "sphinx-book-theme", "pydata-sphinx-theme", "myst-nb", "sphinx-mathjax-offline")


class BuildError(NladvError):
    """A chapter that stops before its end, or a book that does not render without a warning."""


def chapters() -> list[Path]:
    """The source notebooks of the book, in the order of `_toc.yml`.

    Raises:
        SpecError: an entry of `_toc.yml` has no file.
    """
    return [source for source in pages() if source.suffix == ".ipynb"]


def pages() -> list[Path]:
    """All source files of the book (`.md` and `.ipynb`), in the order of `_toc.yml`.

    Raises:
        SpecError: an entry of `_toc.yml` has no file.
    """
    root = project_root()
    found = []
    for entry in _entries(_settings(root / "_toc.yml")):
        files = [root / f"{entry}{suffix}" for suffix in (".ipynb", ".md") if (root / f"{entry}{suffix}").is_file()]
        if not files:
            raise SpecError(
                f"_toc.yml lists {entry!r}, but there is no {entry}.ipynb or {entry}.md; write it or unlist it"
            )
        found.append(files[0])
    return found


def parameters(source: Path) -> dict[str, Any]:
    """Names and defaults of a chapter's parameters: the literals assigned in its one cell tagged `parameters`.

    Raises:
        SpecError: no such cell or several, or anything in it but assignments of plain literals.
    """
    cells = [c for c in _read(source)["cells"] if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(cells) != 1:
        raise SpecError(f"{source.name}: found {len(cells)} cells tagged 'parameters', expected exactly one")
    found: dict[str, Any] = {}
    for statement in ast.parse("".join(cells[0]["source"])).body:
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target: ast.expr | None = statement.targets[0]
        else:
            target = statement.target if isinstance(statement, ast.AnnAssign) else None
        value = getattr(statement, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            raise SpecError(
                f"{source.name}: {ast.unparse(statement)!r} among the parameters, expected `name = literal`"
            )
        try:
            found[target.id] = ast.literal_eval(value)
        except ValueError:
            raise SpecError(f"{source.name}: {ast.unparse(statement)!r} among the parameters is no literal") from None
    return found


def run_chapter(
    chapter: str | Path, params: Mapping[str, Any] | None = None, out: Path | None = None, *, force: bool = False
) -> Path:
    """Execute one chapter with this interpreter, from the project's root, and return the executed notebook's path.

    Nothing happens if `out` was made from the same source, library, parameters and results, unless `force`. The file
    appears when the chapter has run to its end; one that stops is left as `<name>.failed.ipynb` beside it.

    Args:
        chapter: a name in `book/` such as `"02_path_length"`, or the path of a notebook.
        params: values for names that the chapter's parameter cell declares.
        out: where to write, by default `build/notebooks/<name>.ipynb`.

    Raises:
        SpecError: an unknown chapter, or a parameter that it does not declare.
        BuildError: a cell failed or the kernel died.
    """
    source = _find(chapter)
    declared = parameters(source)
    params = dict(params or {})
    for name in params:
        if name not in declared:
            hint = nearest(name, declared)
            raise SpecError(f"{source.stem}: unknown parameter {name!r}{hint or '; it takes ' + ', '.join(declared)}")
    params = _given(source, params)
    out = out or project_root() / "build" / "notebooks" / source.name
    inputs = _inputs(source, params)
    if not force and _made_from(out) == inputs:
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    _execute(source, params, out, inputs)
    return out


def at_tier(source: Path, tier: str) -> dict[str, Any]:
    """The parameters that a chapter of the book at `tier` gets."""
    return {"tier": tier} if "tier" in parameters(source) else {}


def is_due(source: Path, params: Mapping[str, Any], out: Path) -> bool:
    """Whether `run_chapter` would execute the chapter: `out` is not there, or was made from something else."""
    return _made_from(out) != _inputs(source, _given(source, params))


def lock(folder: Path) -> AbstractContextManager[Any]:
    """Hold a build folder, which is made if need be: one build at a time uses it. A dead holder lets go.

    Raises:
        BuildError: another build holds it, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout:
        raise BuildError(f"another build is using {folder.name}/; wait for it or stop it") from None
    except OSError as error:
        raise BuildError(f"{folder} cannot be written to ({error.strerror or error}); make room there") from None


def build(tier: str = "quick", folder: Path | None = None, *, force: bool = False) -> Path:
    """Execute every chapter that changed at `tier`, one by one, render the book and return its `index.html`.

    Args:
        tier: passed to each chapter that declares it, which refuses an unknown one.
        folder: the build folder, by default `build/` in the project's root. One build at a time uses it.
        force: do everything again.

    Raises:
        SpecError: a bad parameter, table of contents or repository URL.
        BuildError: a chapter stopped, or Jupyter Book warned.
    """
    folder = folder or project_root() / "build"
    with lock(folder):
        for source in chapters():
            run_chapter(source, at_tier(source, tier), folder / "notebooks" / source.name, force=force)
        return render(folder, force=force)


def is_rendered(folder: Path) -> bool:
    """Whether `render` would find nothing to do."""
    made_from = _rendered_from(folder)
    return bool(made_from) and made_from == _page_inputs(_executed(folder))


def render(folder: Path | None = None, *, force: bool = False) -> Path:
    """Render the book from its executed chapters if anything has changed, and return its `index.html`.

    Args:
        folder: the build folder with the executed chapters, by default `build/` in the project's root.
        force: also if nothing has changed.

    Raises:
        SpecError: a bad table of contents or repository URL.
        BuildError: a chapter has not been executed, or Jupyter Book warned; the previous pages are still there.
    """
    folder = folder or project_root() / "build"
    executed = _executed(folder)
    for notebook in executed:
        if not notebook.is_file():
            raise BuildError(f"chapter {notebook.stem} has not been executed; `make book` does that first")
    return _render(executed, folder, force)


def page(notebook: Path) -> Path:
    """Render one executed notebook as a page of its own, beside it in `<name>_page/`, and return the HTML file.

    It looks as it would in the book; what it says of other chapters is not linked, because they are not there.

    Raises:
        SpecError: it is not a notebook.
        BuildError: Jupyter Book failed; a previous page is still there.
    """
    import yaml

    if not notebook.is_file():
        raise SpecError(f"there is no notebook {notebook}; `nladv chapter` makes one")
    content = _read(notebook)
    stage = notebook.with_name(f".{notebook.stem}.stage")
    shutil.rmtree(stage, ignore_errors=True)
    for source in [*_assets(), project_root() / "book" / "references.md"]:
        _stage(source, stage)
    (stage / "book" / f"{notebook.stem}.ipynb").write_text(json.dumps(_without_progress(content)), encoding="utf-8")
    toc = {"format": "jb-book", "root": f"book/{notebook.stem}", "chapters": [{"file": "book/references"}]}
    (stage / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    # What pages compute takes twenty seconds, and most notebooks show nothing of it.
    prose = ("".join(cell.get("source", "")) for cell in content["cells"] if cell.get("cell_type") == "markdown")
    configuration = _configuration(substituted=any("{{" in text for text in prose))
    (stage / "_config.yml").write_text(configuration, encoding="utf-8")
    folder = notebook.with_name(f"{notebook.stem}_page")
    made, said = _jupyter_book(stage)
    if made is None:
        _say(said, sys.stderr)
        raise BuildError(f"Jupyter Book could not render {notebook.name} (see above)")
    _replace(folder, made)
    shutil.rmtree(stage)
    return folder / "book" / f"{notebook.stem}.html"


def _executed(folder: Path) -> list[Path]:
    return [folder / "notebooks" / source.name for source in chapters()]


def _render(executed: list[Path], folder: Path, force: bool) -> Path:
    root = project_root()
    sources = _page_sources()
    html = folder / "html"
    index = html / "index.html"
    inputs = _page_inputs(executed)
    if not force and _rendered_from(folder) == inputs:
        _say("book: nothing has changed")
        return index

    stage = folder / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    for source in [*sources, root / "_toc.yml"]:
        _stage(source, stage)
    for notebook in executed:
        staged = stage / "book" / notebook.name
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_text(json.dumps(_without_progress(_read(notebook))), encoding="utf-8")
    (stage / "_config.yml").write_text(_configuration(), encoding="utf-8")

    _say("book: rendering ...")
    start = time.perf_counter()
    made, said = _jupyter_book(stage, "--warningiserror", "--keep-going")
    if made is None:
        _say(said, sys.stderr)
        kept = "; the previous pages are still there" if index.is_file() else ""
        raise BuildError(f"Jupyter Book could not render the book without a warning (see above){kept}")
    _mend(made)
    (made / ".inputs").write_text(inputs or "")
    _replace(html, made)
    shutil.rmtree(stage)
    _say(f"book: rendered in {time.perf_counter() - start:.1f} s")
    return index


def _stage(source: Path, stage: Path) -> None:
    """Copy a file of the project to the same place below `stage`."""
    staged = stage / source.relative_to(project_root())
    staged.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, staged)


def _jupyter_book(stage: Path, *options: str) -> tuple[Path | None, str]:
    """The pages that Jupyter Book makes of a staged folder, or None; and what it said."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(stage)]
    command += ["--path-output", str(stage), "--quiet", *options]
    environment = os.environ | {"NO_COLOR": "1"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    made = stage / "_build" / "html"
    return (None if done.returncode or not (made / "index.html").is_file() else made), done.stdout.rstrip()


def _mend(html: Path) -> None:
    """Take out of the pages what the theme puts in and nobody needs: 1.5 MB a page, and roles that promise too much."""
    for page in html.rglob("*.html"):
        text = page.read_text("utf-8")
        # The same icons come as a font with the theme's style.
        mended = re.sub(r'<script[^>]*\bsrc="[^"]*/fontawesome\.js[^"]*"></script>\s*', "", text)
        # docutils calls a bibliography a list, whose entries then are no list items.
        mended = re.sub(
            r' role="(?:list|doc-biblioentry)"(?= class="citation)|(?<=") role="doc-biblioentry"', "", mended
        )
        if mended != text:
            page.write_text(mended, encoding="utf-8")
    for script in html.rglob("fontawesome.js*"):
        script.unlink()


def _replace(folder: Path, made: Path) -> None:
    """Put `made` in a folder's place. One cannot be renamed over another: the old goes when the new lies beside it."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _page_sources() -> list[Path]:
    return [*(page for page in pages() if page.suffix == ".md"), *_assets()]


def _page_inputs(executed: list[Path]) -> str | None:
    """Digest of all that the pages are made from; None if a chapter has not been executed.

    What pages compute follows from library and results: it need not be computed to know whether it has changed.
    """
    if not all(notebook.is_file() for notebook in executed):
        return None
    root, here = project_root(), Path(__file__)
    files = [*executed, *_page_sources(), root / "_toc.yml", root / "_config.yml", *_library(), *_results()]
    files += sorted((root / "data" / "results" / "reliability").glob("*.json"))
    address = [os.environ.get(name, "") for name in ("NLADV_REPOSITORY_URL", "NLADV_REPOSITORY_BRANCH")]
    return _digest(
        [*files, here, here.with_name("pages.py")], *_versions((*_CHAPTER_PACKAGES, *_PAGE_PACKAGES)), *address
    )


def _rendered_from(folder: Path) -> str:
    """The digest that the pages carry; empty if there are none."""
    stamp = folder / "html" / ".inputs"
    return stamp.read_text() if stamp.is_file() and (folder / "html" / "index.html").is_file() else ""


def _execute(source: Path, params: Mapping[str, Any], out: Path, inputs: str) -> None:
    import nbformat
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    given = "".join(f" {name}={value!r}" for name, value in params.items())
    _say(f"{source.stem}: executing{given} ...")
    start = time.perf_counter()
    partial = out.with_name(f".{out.stem}.partial.ipynb")
    failed = out.with_name(f"{out.stem}.failed.ipynb")
    try:
        execute_notebook(
            source,
            partial,
            parameters=dict(params),
            kernel_name="python3",  # ipykernel's own name for the interpreter that asks for it
            language="python",  # a notebook saved without it fails otherwise
            progress_bar=sys.stderr.isatty(),
            cwd=project_root(),
            # Without it what the kernel sends is readable to every user of the machine, and ipykernel warns of that.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
        )
        notebook = nbformat.read(partial, as_version=4)
        # papermill notes absolute paths and times; a page needs neither, and equal outputs should give equal files.
        notebook.metadata.pop("papermill", None)
        for cell in notebook.cells:
            cell.metadata.pop("papermill", None)
        notebook.metadata["nladv"] = {"inputs": inputs}
        with partial.open("w", encoding="utf-8") as file:
            nbformat.write(notebook, file)
            file.flush()
            os.fsync(file.fileno())
    except (PapermillExecutionError, DeadKernelError, CellTimeoutError) as error:
        saved = "; no cell was saved"
        if partial.exists():
            partial.replace(failed)
            saved = f"; the notebook up to there: {failed}"
        if isinstance(error, PapermillExecutionError):
            last = (error.evalue.strip().splitlines() or ["(no message)"])[-1]
            where = f"cell {error.exec_count} failed with {error.ename}: {last}"
        else:
            where = f"the kernel stopped: {' '.join(str(error).split())}"
        raise BuildError(f"{source.stem}: {where}{saved}") from error
    finally:
        if sys.exc_info()[0] is not None:
            partial.unlink(missing_ok=True)
    partial.replace(out)
    failed.unlink(missing_ok=True)
    _say(f"{source.stem}: executed in {time.perf_counter() - start:.1f} s")


def _configuration(substituted: bool = True) -> str:
    """`_config.yml`, with what pages compute, and buttons where `$NLADV_REPOSITORY_URL` says which repository."""
    import yaml

    from nladv_core import pages as computed

    found = _settings(project_root() / "_config.yml")
    if substituted:
        found["parse"]["myst_substitutions"] = computed.substitutions()
    url = os.environ.get("NLADV_REPOSITORY_URL", "").strip().rstrip("/")
    if url:
        if not re.fullmatch(r"https://(github\.com|gitlab\.com|bitbucket\.org)/[\w.-]+/[\w./-]+", url):
            raise SpecError(
                f"NLADV_REPOSITORY_URL is {url!r}, expected https://github.com/OWNER/NAME (or gitlab.com,"
                " bitbucket.org); correct it, or unset it for a book without launch, edit and issue buttons"
            )
        branch = os.environ.get("NLADV_REPOSITORY_BRANCH", "").strip() or "main"
        found["repository"] = {"url": url, "branch": branch, "path_to_book": ""}
        found["html"] |= dict.fromkeys(("use_repository_button", "use_edit_page_button", "use_issues_button"), True)
        found["launch_buttons"] = {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"}
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def _settings(path: Path) -> dict[str, Any]:
    """A YAML file of plain values; a tag in it builds nothing.

    Raises:
        SpecError: it is something else.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise SpecError(f"{path.name} cannot be read as YAML of plain values ({reason}); restore it") from None
    if not isinstance(found, dict):
        raise SpecError(f"{path.name} holds {type(found).__name__}, expected names with values; restore it")
    return found


def _find(chapter: str | Path) -> Path:
    if isinstance(chapter, Path) or chapter.endswith(".ipynb"):
        source = Path(chapter)
        if not source.is_file():
            raise SpecError(f"there is no notebook {source}; give a path, or the name of a chapter in book/")
        return source
    known = {source.stem: source for source in chapters()}
    if chapter not in known:
        raise SpecError(f"unknown chapter {chapter!r}{nearest(chapter, known) or '; there are ' + ', '.join(known)}")
    return known[chapter]


def _entries(toc: Any) -> Iterator[str]:
    """Every `root:` and `file:` of a table of contents, depth first."""
    if isinstance(toc, Mapping):
        for key, value in toc.items():
            if key in ("root", "file"):
                yield str(value).removesuffix(".md").removesuffix(".ipynb")
            else:
                yield from _entries(value)
    elif isinstance(toc, list):
        for item in toc:
            yield from _entries(item)


def _library() -> list[Path]:
    """The modules that a chapter may use: all but those that make chapters and pages."""
    here = Path(__file__).parent
    makers = ("book.py", "cli.py", "grid.py", "pages.py")
    return [path for path in sorted(here.rglob("*.py")) if path.name not in makers]


def _results() -> list[Path]:
    """Committed claims and records below `data/`: all files but the cache, the (large) weights of parents, and what
    only pages show.
    """
    data = project_root() / "data"
    tops = [path for path in sorted(data.glob("*")) if path.name not in ("cache", "parents")]
    found = [path for top in tops for path in ([top] if top.is_file() else sorted(top.rglob("*"))) if path.is_file()]
    return [path for path in found if not path.is_relative_to(data / "results" / "reliability")]


def _assets() -> list[Path]:
    """Bibliography, images, styles and scripts that the pages use."""
    book = project_root() / "book"
    kinds = (".bib", ".css", ".js", ".png", ".svg", ".jpg", ".webp", ".gif")
    return [path for path in sorted(book.rglob("*")) if path.suffix in kinds and ".ipynb_checkpoints" not in path.parts]


def _given(source: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """Without defaults, which need no injected cell, so that the same values have the same digest."""
    declared = parameters(source)
    return {name: value for name, value in params.items() if value != declared.get(name)}


def _inputs(source: Path, given: Mapping[str, Any]) -> str:
    """Digest of all that a chapter is made from."""
    return _digest([source, *_library(), *_results()], *_versions(_CHAPTER_PACKAGES), repr(sorted(given.items())))


def _versions(packages: Iterable[str]) -> list[str]:
    return [platform.python_version(), *(f"{name} {metadata.version(name)}" for name in packages)]


def _digest(files: Iterable[Path], *more: str) -> str:
    digest = hashlib.sha256()
    root = project_root()
    for path in files:
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{name}\0{content}\n".encode())
    digest.update(json.dumps([*more, os.environ.get("NLADV_DATA", "")]).encode())
    return digest.hexdigest()


def _made_from(executed: Path) -> str | None:
    try:
        return _read(executed)["metadata"]["nladv"]["inputs"]
    except (OSError, SpecError, KeyError, TypeError):
        return None


def _read(notebook: Path) -> dict[str, Any]:
    try:
        found = json.loads(notebook.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"{notebook.name} is not a notebook (JSON): {error}; restore it") from None
    if not isinstance(found, dict) or not isinstance(found.get("cells"), list):
        raise SpecError(f"{notebook.name} is not a notebook: it has no list of cells; restore it")
    return found


def _without_progress(notebook: dict[str, Any]) -> dict[str, Any]:
    """Drop what progress bars wrote (lines that return to their start, and line ends); warnings and errors stay."""

    def progress(output: dict[str, Any]) -> bool:
        text = "".join(output["text"]) if output.get("name") == "stderr" else "-"
        return "\r" in text or not text.strip()

    for cell in notebook["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if not progress(output)]
    return notebook


def _say(line: str, file: TextIO | None = None) -> None:
    print(line, file=file or sys.stdout, flush=True)
