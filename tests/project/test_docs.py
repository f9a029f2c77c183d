"""README and guides: the commands run, the tables are those of the committed reports, the links lead somewhere."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distillery.commands.generate import in_full
from distillery.commands.predict import SETTING
from distillery.config.check import check
from distillery.config.hydra_support import HYDRA_VERSION, register_resolvers
from distillery.core.paths import CONFIGS
from distillery.runs.stages.sequence import StageSequence
from fixtures.command_line import Cli
from fixtures.composing import train_config
from fixtures.conversations import turns, write_chat_tokenizer
from fixtures.datasets import write_fashion_mnist, write_speeches
from fixtures.documents import documents, tiny_llama, write_texts
from fixtures.runs import config
from fixtures.texts import tiny_bert, write_jsonl, write_tokenizer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/guides").glob("*.md"))]
RESULTS = (ROOT / "docs/results/index.md").read_text(encoding="utf-8")


def in_blocks(page: str) -> list[list[str]]:
    """The words of each command in the page's code blocks."""
    joined = page.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^distill-.*$", joined, re.MULTILINE)]


def in_text(page: str) -> Iterator[list[str]]:
    """Those between the words, but for the ones with a placeholder."""
    for command in re.findall(r"`(distill-[^`]+ [^`]+)`", page):
        if not set("<…") & set(command):
            yield shlex.split(command)


def first_of_sweep(arguments: list[str]) -> list[str]:
    """The overrides of the first job."""
    first = []
    for override in OverridesParser.create().parse_overrides(arguments):
        if override.is_sweep_override():
            first.append(f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}")
        elif override.key_or_group != "sweep" and not override.key_or_group.startswith("hydra"):
            first.append(override.input_line)
    return first


def test_readme_is_short_and_its_tables_are_those_of_the_reports() -> None:
    filled = runpy.run_path(str(ROOT / "scripts/tables.py"))["filled"]
    assert filled(README) == README, "make docs"
    assert README.count("<!-- results:") == 2
    assert len(README.splitlines()) <= 200


def test_links_within_the_repository_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
        assert links
        for link in links:
            assert (ROOT / link).exists(), link


@pytest.mark.usefixtures("smollm2_package")
def test_every_command_composes(tmp_path: Path) -> None:
    register_resolvers()
    found = [command for page in (README, *GUIDES, RESULTS) for command in (*in_blocks(page), *in_text(page))]
    assert len(found) > 50
    for name, *arguments in dict.fromkeys(map(tuple, found)):
        if name == "distill-losses" or "--help" in arguments:
            continue
        if name == "distill-predict":
            arguments = [argument for argument in arguments if SETTING.match(argument)]  # the others are files
        overrides = first_of_sweep([a for a in arguments if a not in ("-m", "--cfg", "job")])
        if name != "distill-train":
            with initialize_config_dir(str(CONFIGS), **HYDRA_VERSION):
                compose(name.removeprefix("distill-"), in_full(overrides) if name == "distill-generate" else overrides)
        elif not OmegaConf.missing_keys(cfg := train_config(*overrides, "paths.run=run")):
            check(cfg, overrides)


def test_the_stages_are_what_is_said_of_them(teacher: Path, tmp_path: Path) -> None:
    stages = (ROOT / "docs/guides/stages.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n.*?(stages:\n.*?)```", stages, re.DOTALL)
    own = ["experiment=digits_demo", "loss/feature=[hint]", f"teachers.main.weights='{teacher}'"]
    cfg = config(tmp_path / "run", *own)
    cfg.stages = OmegaConf.create(block).stages
    sequence = StageSequence(check(cfg))
    sequence.rehearse(show=False)
    hint, assistant, student = sequence.stages
    assert (hint.cfg.task.weight, assistant.cfg.task.weight) == (0, cfg.task.weight)
    assert [*student.cfg.loss] == ["kd"]


@pytest.mark.long
def test_the_commands_of_readme_and_guides_run(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, cut short: few epochs, one seed; small files in the place of the data sets."""
    monkeypatch.setenv("DISTILLERY_OUTPUTS", "outputs")
    write_fashion_mnist(tmp_path / "fashion", train=200, test=50)
    write_own_data(tmp_path)
    once = ["trainer.max_epochs=1", "min_teacher_score=0"]
    small = [*once, "data.val_size=50", "data.train_size=100", f"data.root={tmp_path / 'fashion'}"]
    # composed above; one needs the hub, and language models run below
    elsewhere = {
        "push_to_hub=my-name/digits",
        "model/teacher=stored",
        "--cfg",
        "hardware=ddp",
        "experiment=fashion_mnist_vit",
        "experiment=fashion_mnist_vit_qad",
        "run=outputs/fashion_mnist_vit/qad",
        "study=digits_demo",
        "data=sotu",
        "experiment=sotu_lm_teacher",
        "experiment=sotu_lm",
        "experiment=smollm2_sotu",
        "experiment=movie_reviews_lm",
        "study=demo_lm",
        "task=causal_lm",
        "data=messages",
        *(f"generate={recipe}" for recipe in ("answers", "rationale", "instructions", "passages", "labels")),
        "against=held_out.jsonl",
        "run=outputs/sotu_lm/kd",
        "data.root=pets",
        "new_digits",
        "run=outputs/pictures/kd/seed0",
        "run=outputs/reviews/kd/seed0",
        "run=outputs/roads/kd/seed0",
        "data.root=streets",
        "task=embedding",
        "task=question_answering",
        "optim.scheduler.warmup_t=5",  # epochs
    }
    # what `make demo` leaves; but for its teacher, which is trained by a command of the README here
    demo = ["study=digits_demo", "seeds=[0]", "teacher_folder=outputs/teacher", "overrides=" + json.dumps(once)]
    assert cli("study", *demo)[0] == 0
    found = dict.fromkeys(tuple(command) for page in (README, *GUIDES) for command in in_blocks(page))
    for number, (name, *arguments) in enumerate(found):
        command = name.removeprefix("distill-")
        if elsewhere & {*arguments}:
            continue
        given = [*arguments]
        if "study=own_images" in arguments:
            given += ["seeds=[0]", "epochs=1", "size=32", "teacher_weights=null"]
            given += ['overrides=["min_teacher_score=0","data.num_workers=0"]']
        elif "study=own_texts" in arguments:
            given += ["seeds=[0]", "epochs=1", "teacher_net=network", 'overrides=["min_teacher_score=0"]']
        elif command == "study":
            given += ["seeds=[0]", "overrides=" + json.dumps(small)]
        elif command == "train":
            given += [*once, "callbacks.checkpoint_last.every_n_epochs=1"]
            if "-m" not in arguments and not any(a.startswith(("hydra.run.dir=", "resume=")) for a in arguments):
                given.append(f"hydra.run.dir=outputs/{number}")  # two runs of the same second have the same folder
        if "sweep=edge" in arguments:
            given.append("hydra.sweeper.n_trials=3")
        if "sweep=temperature" in arguments:
            given += ["loss.kd.temperature=1,2", "seed=0"]
        if "data=image_folder" in arguments:
            given += ["data.source.size=32", "data.num_workers=0"]
        given = ["student.weights=null" if a == "student.weights=pretrained" else a for a in given]  # no network here
        code, printed = cli(command, *given)
        assert code == 0, f"{name} {shlex.join(given)}\n{printed}"
    assert (tmp_path / "outputs/digits_demo/report.png").is_file()


@pytest.mark.long
def test_the_commands_of_language_models_run(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the guides that need no server, cut short; small texts and networks in the place of the named ones."""
    monkeypatch.setenv("DISTILLERY_OUTPUTS", "outputs")
    write_speeches(tmp_path / "data/sotu")
    write_texts(tmp_path / "books", documents(24))
    chats = [{"messages": turns(f"What is {number}?", f"It is {number} of the people.")} for number in range(24)]
    for name in ("chats", "answers/answers", "cleaned/clean", "held_out"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / f"{name}.jsonl", chats[:20] if name != "held_out" else chats[20:])
    tokenizer = AutoTokenizer.from_pretrained(write_chat_tokenizer(tmp_path / "smollm2"))
    heads = {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048}
    layers = {"num_hidden_layers": 30, "intermediate_size": 1536}  # of which guides keep some
    tiny_llama(len(tokenizer), **heads, **layers).save_pretrained(tmp_path / "smollm2")  # type: ignore[operator]
    wanted = {"data=sotu", "experiment=sotu_lm_teacher", "experiment=sotu_lm", "task=causal_lm", "stride=128"}
    found = dict.fromkeys(tuple(command) for page in GUIDES for command in in_blocks(page))
    ran = 0
    for number, (name, *arguments) in enumerate(found):
        if not wanted & {*arguments} or {"model/teacher=served", "model/teacher=answers"} & {*arguments}:
            continue
        given = [re.sub(r"HuggingFaceTB/SmolLM2-[-\w.]+", "smollm2", argument) for argument in arguments]
        if "data=sotu" in given:
            given.append("size=300")
        elif name == "distill-train":
            given.append("trainer.max_epochs=1")
            if given[0] == "experiment=sotu_lm":
                given.append(f"hydra.run.dir=outputs/{f'sotu_lm/{number}' if len(given) > 2 else 'sotu_lm/kd'}")
            elif not any(argument.startswith("hydra.run.dir=") for argument in given):
                given.append(f"hydra.run.dir=outputs/{number}")
        if "experiment=sotu_lm" in given:
            given += ["data.train_size=6"]
        if "task=causal_lm" in given:
            given += ["data.max_length=64", "data.batch_size=2"]
        code, printed = cli(name.removeprefix("distill-"), *given)
        assert code == 0, f"{name} {shlex.join(given)}\n{printed}"
        ran += 1
    assert ran > 10


@pytest.mark.slow
def test_the_site_builds_offline_without_a_warning(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "mkdocs"
    closed = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", **closed}
    command = [script, "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    html = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    loaded = re.compile(r"""<(?:script|img|iframe|link rel="(?:stylesheet|preconnect|icon)")[^>]*["'](?:https?:)?//""")
    assert not [path for path, text in html.items() if loaded.search(text)]
    for page in ("losses/response.html", "losses/feature.html", "losses/attention.html", "losses/relation.html"):
        assert "<math" in html[tmp_path / page]
    attention = html[tmp_path / "losses/attention.html"]
    assert "{blocks.2.attn: blocks.5.attn, ...}" in attention  # not taken for attributes of the cell


def write_own_data(folder: Path) -> None:
    """`pictures/<class>/*.jpg`, `reviews.csv`, rows of JSON, and the folders of a `tokenizer` and of a `network`."""
    for number in range(60):
        path = folder / "pictures" / ("cat" if number % 2 else "dog") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number * 4, 90, 255 - number * 4)).save(path)
    labels = ["good" if number % 2 else "bad" for number in range(60)]
    rows = [f"word{number} is {label},{label}" for number, label in enumerate(labels)]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    for name in ("answers", "held_out"):
        write_jsonl(folder / f"{name}.jsonl", [{"prompt": f"Is {name} good?", "completion": "It is."}])
    words = ["[PAD]", "[UNK]", "is", "good", "bad"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder / "tokenizer"
    )
    write_tokenizer(folder / "network")
    tiny_bert().save_pretrained(folder / "network")
