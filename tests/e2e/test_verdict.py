"""Requirements on a run: the verdict, its exit code, and what stays of it in the folder."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from argparse import Namespace
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from pipelines.runner import main, run
from pipelines.stages import Missed
from pipelines.suite import load_suite
from tfrobust import Threat, evaluate, load_network, provenance
from tfrobust.errors import UserError
from tfrobust.flags import Flags
from tfrobust.record import CheckRow, Record
from tfrobust.report import load_run

pytestmark = pytest.mark.usefixtures("short_closing")
COMMON = ["threat.eps=0.19", "attacks={name: pgd, steps: 3}", "data.name=npz"]


def network(path: Path, threshold: float) -> None:
    """Save a network that calls an image bright if its mean is above the threshold."""
    made = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    mean = np.ones((36, 1), np.float32) / 36
    made.layers[-1].set_weights([np.hstack([-mean, mean]), np.array([threshold, -threshold])])
    made.save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 100 dark and bright images, and two networks.

    The means of the images are 0.2 from the threshold of good.keras, give or take 0.017, and 0.1 or
    0.3 from that of worse.keras, which no bright image withstands.
    """
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 100)
    x = np.clip(0.3 + 0.4 * y[:, None, None, None] + 0.1 * rng.normal(size=(100, 6, 6, 1)), 0, 1)
    np.savez(folder / "images.npz", x_test=x.astype(np.float32), y_test=y)
    np.savez(folder / "others.npz", x_test=x[::-1].astype(np.float32), y_test=y[::-1])
    network(folder / "good.keras", 0.5)
    network(folder / "worse.keras", 0.6)
    return folder


def overrides(made: Path, name: str, *required: str) -> list[str]:
    paths = [f"data.path={made / 'images.npz'}", f"model.path={made / name}.keras", f"name={name}"]
    return [*COMMON, *paths, *(f"require.{item}" for item in required)]


@pytest.fixture
def baseline(made: Path, tmp_path: Path) -> Path:
    """Return the folder of a run of the good network."""
    return run("evaluate", overrides(made, "good"), tmp_path / "runs", None, smoke=False)


def test_a_run_that_meets_its_requirements_says_so_with_every_warning(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = overrides(made, "good", "clean_accuracy=0.9", "robust_accuracy=0.5")
    folder = run("evaluate", settings, tmp_path, None, smoke=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("met: ")]
    clean, robust = json.loads((folder / "eval.json").read_text())["requirements"]
    assert lines == [f"met: {row['name']}: {row['text']}" for row in (clean, robust)]
    assert clean["met"] and robust["met"] and 0.5 < robust["bound"] < robust["value"] < 1
    (suite,) = ET.parse(folder / "junit.xml").getroot()
    names = [case.get("name") for case in suite.iter("testcase")]
    assert names == ["clean_accuracy", "robust_accuracy"] and suite.get("failures") == "0"
    assert "<h2>Requirements</h2>" in (folder / "report" / "index.html").read_text()

    # An evaluation that writes eval.json anew leaves no verdict in it, so there is another one.
    record = Record.load(folder)
    record.checks = [CheckRow(name="more steps", text="They break more.", warns=True)]
    record.requirements = []
    record.save(folder)
    run("evaluate", settings, tmp_path, None, smoke=False)
    assert "\nwarning: more steps: They break more.\nmet: clean" in capsys.readouterr().out
    assert len(Record.load(folder).requirements) == 2
    (suite,) = ET.parse(folder / "junit.xml").getroot()
    assert suite.findtext("system-out") == "warning: more steps: They break more."


def test_a_record_that_was_cut_off_is_made_again_with_its_verdict(
    made: Path, tmp_path: Path
) -> None:
    """The verdict could not read it, so every start was refused."""
    settings = overrides(made, "good", "clean_accuracy=0.9")
    folder = run("evaluate", settings, tmp_path, None, smoke=False)
    record = folder / "eval.json"
    record.write_bytes(record.read_bytes()[:100])
    run("evaluate", settings, tmp_path, None, smoke=False)
    assert [row.met for row in load_run(folder).evaluation.requirements] == [True]


def test_a_call_of_evaluate_does_not_replace_the_attacks_of_the_config(
    made: Path, tmp_path: Path
) -> None:
    """The stage was "done before, skipped", and the requirement met under a weaker attack."""
    settings = overrides(made, "good", "robust_accuracy=0.5")
    folder = run("evaluate", settings, tmp_path, None, smoke=False)
    rows = Record.load(folder).attacks
    with np.load(made / "images.npz") as images:
        data = images["x_test"], images["y_test"]
    weaker, network = Threat("linf", 0.01), load_network(made / "good.keras")
    evaluate(network, *data, weaker, "fgsm", folder=folder, check=False, progress=False)
    with pytest.raises(UserError, match="run the stage attack_eval first"):
        run("evaluate", settings, tmp_path, ["report"], smoke=False)
    run("evaluate", settings, tmp_path, None, smoke=False)
    again = Record.load(folder).attacks
    assert [row.config for row in again] == [row.config for row in rows]
    assert [row.name for row in Record.load(folder / "evaluation.1").attacks] == ["PGD-3"]
    assert [row.name for row in Record.load(folder / "evaluation.2").attacks] == ["FGSM"]


def test_a_run_that_misses_one_is_reported_and_ends_with_3_each_time(
    made: Path, baseline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "runs"
    required = [f"no_worse_than={baseline}", "robust_accuracy=0.45", "clean_accuracy=0.9"]
    settings = overrides(made, "worse", *required)
    options = Namespace(
        overrides=settings, workdir=workdir, stages=None, smoke=False, print_config=False
    )
    capsys.readouterr()
    outcomes = []
    for _ in range(2):
        with pytest.raises(SystemExit) as exit_:
            main("evaluate", options)
        assert exit_.value.code == 3
        outcomes.append(capsys.readouterr())
    first, again = outcomes
    floor, pair = first.err.splitlines()
    assert first.err == again.err and "verdict: done before, skipped" in again.out
    assert floor.startswith("missed: robust_accuracy: ") and "required: at least 45.00%" in floor
    assert pair.startswith("missed: no_worse_than, robust: -") and str(baseline) in pair
    assert first.out.splitlines()[-1] == f"Done: {workdir / 'worse'}"

    folder = workdir / "worse"
    rows = Record.load(folder).requirements
    assert [row.met for row in rows] == [True, False, True, False]
    assert 'class="wrong">missed' in (folder / "report" / "index.html").read_text()
    (suite,) = ET.parse(folder / "junit.xml").getroot()
    messages = [failure.get("message") for failure in suite.iter("failure")]
    assert [f"missed: {message}" for message in messages] == [floor, pair]

    # Other requirements are judged on the same evaluation, and none is no verdict.
    lower = [*settings, "require={robust_accuracy: 0.1, level: 0.9}"]
    run("evaluate", lower, workdir, ["report"], smoke=False)
    assert [row.required for row in Record.load(folder).requirements] == [0.1]
    run("evaluate", [*settings, "require=null"], workdir, None, smoke=False)
    assert "<h2>Requirements</h2>" not in (folder / "report" / "index.html").read_text()


def test_the_config_of_a_run_whose_stages_are_skipped_is_that_of_the_command(
    made: Path, tmp_path: Path
) -> None:
    """What is required and missed stood in config.yaml alone, which only other stages wrote."""
    settings = overrides(made, "worse", "robust_accuracy=0.45")
    none, stages = [*settings, "require=null"], ["attack_eval"]

    def missed() -> None:
        with pytest.raises(Missed, match="robust_accuracy"):
            run("evaluate", settings, tmp_path, stages, smoke=False)

    missed()
    folder = run("evaluate", none, tmp_path, None, smoke=False)  # the page has no requirements
    missed()
    run("evaluate", none, tmp_path, stages, smoke=False)
    assert not load_run(folder).missed and not (folder / "junit.xml").exists()
    command = load_run(folder).config["command"]
    run(str(folder / "config.yaml"), [], tmp_path, stages, smoke=False)
    assert load_run(folder).config["command"] == command and "require=null" in command


def test_a_suite_counts_members_that_miss_and_ends_with_3(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both members are done before, so that the suite starts no process."""
    shared = {
        "threat.eps": 0.19,
        "attacks": {"name": "pgd", "steps": 3},
        "data": {"name": "npz", "path": str(made / "images.npz")},
        "require.robust_accuracy": 0.45,
    }
    entries = [
        {"config": "evaluate", "label": name, "set": {"model.path": f"{made / name}.keras"}}
        for name in ("good", "worse")
    ]
    file = tmp_path / "pair.yaml"
    file.write_text(yaml.safe_dump({"set": shared, "runs": entries}))
    workdir = tmp_path / "runs"
    for member in load_suite(file, [], workdir).members:
        settings = [f"name={member.name}", *member.overrides]
        try:
            run("evaluate", settings, workdir / "pair", None, smoke=False)
        except Missed:
            assert member.name == "worse"
    capsys.readouterr()
    options = Namespace(overrides=[], workdir=workdir, smoke=False, print_config=False)
    with pytest.raises(SystemExit) as exit_:
        main(str(file), options)
    assert exit_.value.code == 3
    assert capsys.readouterr().err == "missed: 1 of 2 runs miss a requirement: worse\n"
    page = (workdir / "pair" / "report" / "index.html").read_text()
    assert "worse missed robust_accuracy: " in page and "2 of 2 runs finished" in page


def test_what_cannot_be_judged_is_refused_before_anything_is_written(
    made: Path, baseline: Path, tmp_path: Path
) -> None:
    def refused(match: str, *changes: str) -> None:
        settings = overrides(made, "worse", f"no_worse_than={baseline}")
        with pytest.raises(UserError, match=match) as error:
            run("evaluate", [*settings, *changes], tmp_path / "runs", None, smoke=False)
        assert "\n" not in str(error.value) and not (tmp_path / "runs" / "worse").exists()

    where = "^require.no_worse_than: expected a"
    refused(
        where + r" run under the threat linf, eps 0.2, received 'linf, eps 0.19'", "threat.eps=0.2"
    )
    refused(where + " run with the same attacks, PGD-4: .*received None", "attacks.steps=4")
    margin = "attacks={name: pgd, steps: 3, loss: margin, label: PGD-3}"
    refused(where + ".* PGD-3: .*'loss': 'margin'", margin)
    others = f"data.path={made / 'others.npz'}"
    refused(where + " run on the same test images in the same order", others)
    nowhere = f"require.no_worse_than={baseline}e"
    refused("eval.json: expected the result of .*did you mean 'good'", nowhere)
    refused("clean_accuracy: expected at most 0.97.*100 images", "require.clean_accuracy=0.98")
    few = "attacks={name: pgd, steps: 3, examples: 20}"  # so the clean images are as few
    refused("clean_accuracy: expected at most 0.860.*20 images", few, "require.clean_accuracy=0.9")
    itself = overrides(made, "good", f"no_worse_than={baseline}")
    with pytest.raises(UserError, match=where + "|the folder of another run"):
        run("evaluate", itself, tmp_path / "runs", None, smoke=False)


@pytest.mark.slow
def test_a_training_that_takes_too_long_misses_its_minutes(tmp_path: Path) -> None:
    """With other minutes the run is only judged again."""
    settings = ["model={name: small_cnn, filters: [4], kernel: 3, units: 16}", "train.epochs=2"]
    settings += ["train.steps_per_epoch=2", "train.epsilon_ramp_epochs=0", "attacks=fgsm"]
    settings += ["evaluation.split=validation"]
    with pytest.raises(Missed) as error:
        run("digits_adv", [*settings, "require.training_minutes=1e-5"], tmp_path, None, smoke=False)
    assert error.value.lines[0].endswith("and validation; required: at most 1e-05")
    folder = error.value.folder
    (row,), history = Record.load(folder).requirements, (folder / "history.csv").read_text()
    *_, last = csv.DictReader(history.splitlines())
    assert row.value == float(last["training_seconds"]) / 60
    run("digits_adv", [*settings, "require.training_minutes=60"], tmp_path, None, smoke=False)
    record = Record.load(folder)
    assert record.requirements[0].met and (folder / "history.csv").read_text() == history
    assert record.training_hardware == provenance.hardware()
    assert record.data is not None and record.data.split == "validation"
    assert record.examples == 60 and len(set(Flags.load(folder).index.tolist())) == 60


def test_minutes_are_refused_without_a_training(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="require.training_minutes: expected none .*not train"):
        run("evaluate", overrides(made, "good", "training_minutes=5"), tmp_path, None, smoke=False)


def test_a_smoke_run_is_not_judged_and_says_so(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = overrides(made, "worse", "no_worse_than=nowhere", "robust_accuracy=0.99")
    folder = run("evaluate", settings, tmp_path, None, smoke=True)
    assert "not judged, as the images of a smoke run are made up" in capsys.readouterr().out
    assert Record.load(folder).requirements == [] and not (folder / "junit.xml").exists()
