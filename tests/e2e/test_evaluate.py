"""A user's own network under `evaluate`: results, refusals, interruption and restart."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from pipelines.runner import run
from pipelines.stages import attack_eval
from tests.e2e.conftest import ROOT, Command
from tests.products import slow_but
from tfrobust.errors import UserError

ATTACKS = "attacks=[{name: pgd, steps: 3}, {name: apgd, steps: 6}, {name: square, queries: 40}]"


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return overrides that name a network and arrays of two classes, bright and dark images."""
    folder = tmp_path_factory.mktemp("mine")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    x = np.clip(0.3 + 0.4 * y[:, None, None, None] + 0.1 * rng.normal(size=(120, 6, 6, 1)), 0, 1)
    x = (np.rint(255 * x) / 255).astype(np.float32)
    np.savez(folder / "my.npz", x_test=x[60:], y_test=y[60:])
    network = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten()])
    network.add(keras.layers.Dense(2))
    bright = np.ones((36, 1), np.float32) / 36
    network.layers[-1].set_weights([np.hstack([-bright, bright]), np.array([0.5, -0.5])])
    network.save(folder / "my.keras")
    network.export(str(folder / "exported"), verbose=False)
    softmax = keras.Sequential([network, keras.layers.Softmax()])
    softmax.save(folder / "softmax.keras")
    return [
        f"model.path={folder / 'my.keras'}",
        "data.name=npz",
        f"data.path={folder / 'my.npz'}",
        "threat.eps=0.17",
    ]


def evaluated(tmp_path: Path, overrides: list[str]) -> dict:
    folder = run("evaluate", overrides, tmp_path / "runs", None, smoke=False)
    return json.loads((folder / "eval.json").read_text())


def test_the_worst_case_of_a_cascade(mine: list[str], tmp_path: Path) -> None:
    """PGD breaks an image of the linear network if its mean is within eps of 0.5."""
    result = evaluated(tmp_path, [*mine, ATTACKS])
    with np.load(mine[2].partition("=")[2]) as arrays:
        mean = arrays["x_test"].mean((1, 2, 3))
    expected = np.mean(np.abs(mean - 0.5) > 0.17)
    assert 0 < expected < 1
    assert result["mode"] == "cascade" and result["pending"] == []
    pgd, apgd, square = result["attacks"]
    assert pgd["robust_accuracy"] == pytest.approx(expected)
    assert result["robust_accuracy"] == pytest.approx(expected)
    assert (pgd["attacked"], apgd["attacked"]) == (60, round(60 * expected))
    assert square["gradients"] == 0 < square["queries"]
    assert {check["name"] for check in result["checks"]}


@pytest.mark.usefixtures("short_closing")
def test_a_saved_model_and_probabilities(mine: list[str], tmp_path: Path) -> None:
    folder = Path(mine[0].partition("=")[2]).parent
    few = ["attacks={name: pgd, steps: 3}", "evaluation.save=uint8"]
    exported = [f"model.path={folder / 'exported'}", *mine[1:], *few]
    plain = evaluated(tmp_path / "plain", [*mine, *few])
    assert evaluated(tmp_path / "exported", exported)["robust_accuracy"] == plain["robust_accuracy"]
    softmax = [f"model.path={folder / 'softmax.keras'}", *mine[1:], *few]
    with pytest.raises(UserError, match="expected logits, received probabilities"):
        evaluated(tmp_path / "refused", softmax)
    converted = evaluated(tmp_path / "converted", [*softmax, "model.outputs=probabilities"])
    assert converted["robust_accuracy"] == plain["robust_accuracy"]
    with np.load(tmp_path / "plain" / "runs" / "evaluate" / "adversarial.npz") as saved:
        assert saved["image"].dtype == np.uint8 and len(saved["image"]) == 60
    (tmp_path / "plain" / "runs" / "evaluate" / "adversarial.npz").unlink()
    assert evaluated(tmp_path / "plain", [*mine, *few])["rounded_robust_accuracy"] is not None
    assert (tmp_path / "plain" / "runs" / "evaluate" / "adversarial.npz").is_file()
    assert plain["robust_accuracy"] <= plain["rounded_robust_accuracy"] < plain["clean_accuracy"]


@pytest.mark.usefixtures("short_closing")
def test_a_network_of_any_size_with_two_outputs(mine: list[str], tmp_path: Path) -> None:
    """The brightness of an image of any size is the score of the linear network."""
    image = keras.Input((None, None, 1))
    bright = keras.layers.GlobalAveragePooling2D()(image)
    scores = keras.layers.Dense(2, name="scores")
    network = keras.Model(image, [scores(bright), keras.layers.Dense(3, name="other")(bright)])
    scores.set_weights([np.array([[-1.0, 1.0]]), np.array([0.5, -0.5])])
    network.save(tmp_path / "two.h5")
    few = [*mine[1:], "attacks={name: pgd, steps: 3}", "stages=[attack_eval,export]"]
    two = [f"model.path={tmp_path / 'two.h5'}", *few]
    with pytest.raises(UserError, match="model.path: .*other, scores; name that of the logits by"):
        evaluated(tmp_path, two)
    with pytest.raises(UserError, match="model.path: output: .*did you mean 'scores'"):
        evaluated(tmp_path, [*two, "model.output=score"])
    named = evaluated(tmp_path, [*two, "model.output=scores"])
    plain = evaluated(tmp_path / "plain", [mine[0], *few])
    assert named["robust_accuracy"] == plain["robust_accuracy"]
    exported = tmp_path / "runs" / "evaluate" / "saved_model"
    again = [f"model.path={exported / 'saved_model.pb'}", *few[:-1], "stages=[attack_eval]"]
    assert evaluated(tmp_path / "again", again)["robust_accuracy"] == plain["robust_accuracy"]


@pytest.mark.usefixtures("short_closing")
def test_another_reading_of_the_outputs_is_another_evaluation(
    mine: list[str], tmp_path: Path
) -> None:
    folder = Path(mine[0].partition("=")[2]).parent
    softmax = [f"model.path={folder / 'softmax.keras'}", *mine[1:], "attacks={name: pgd, steps: 3}"]
    evaluated(tmp_path, [*softmax, "model.outputs=probabilities"])
    with pytest.raises(UserError, match="expected logits, received probabilities"):
        evaluated(tmp_path, softmax)
    logits = [*mine, "attacks={name: pgd, steps: 3}", "model.outputs=probabilities"]
    with pytest.raises(UserError, match="model.outputs: expected a network of probabilities"):
        evaluated(tmp_path, logits)
    surrogate = f"attacks={{name: transfer, source: {folder / 'softmax.keras'}, attack: fgsm}}"
    with pytest.raises(UserError, match="source: expected a network of logits .or outputs: prob"):
        evaluated(tmp_path / "refused", [*mine, surrogate])
    assert not (tmp_path / "refused").exists()


@pytest.mark.usefixtures("short_closing")
@pytest.mark.parametrize("kind", slow_but(["float32", "uint8"], ["uint8"]))
def test_saved_images_of_one_evaluation_attack_in_another(
    mine: list[str], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded saved images stay in the ball too: 0.17 is 43.35 / 255."""
    first = evaluated(tmp_path, [*mine, "attacks={name: pgd, steps: 3}", f"evaluation.save={kind}"])
    images = tmp_path / "runs" / "evaluate" / "adversarial.npz"
    attacks = f"attacks=[{{name: saved_images, path: {images}}}]"
    second = evaluated(tmp_path / "second", [*mine, attacks])
    rounded = first.get("rounded_robust_accuracy", first["robust_accuracy"])
    assert second["robust_accuracy"] == rounded
    with np.load(images) as arrays:
        half = len(arrays["image"]) // 2
        np.savez(images, **{key: arrays[key][:half] for key in ("image", "index")})
    monkeypatch.setattr(attack_eval, "FIRST", 1)  # the missing ones come later
    with pytest.raises(UserError, match="path: expected an image for each of"):
        evaluated(tmp_path / "refused", [*mine, attacks])
    assert not (tmp_path / "refused").exists()


def test_images_off_the_grid_are_not_rounded(tmp_path: Path, mine: list[str]) -> None:
    sets = [mine[0], "data.name=npz", f"data.path={tmp_path / 'off.npz'}", "threat.eps=0.1"]
    with np.load(mine[2].partition("=")[2]) as arrays:
        off = {k: v * np.float32(0.99) if k[0] == "x" else v for k, v in arrays.items()}
    np.savez(tmp_path / "off.npz", **off)
    with pytest.raises(
        UserError, match="evaluation.save: expected float32, since the images are not"
    ):
        evaluated(tmp_path / "refused", [*sets, "attacks=fgsm", "evaluation.save=uint8"])
    assert not (tmp_path / "refused").exists()


SIGNALS = [signal.SIGKILL, signal.SIGTERM]


@pytest.mark.usefixtures("short_closing")
@pytest.mark.parametrize("number", slow_but(SIGNALS, [signal.SIGTERM]))
def test_killed_and_started_again(mine: list[str], tmp_path: Path, number: int) -> None:
    """A signal after the first attack and a restart give the flags of an uninterrupted run."""
    straight = run("evaluate", [*mine, ATTACKS], tmp_path / "straight", None, smoke=False)
    sets = [part for override in [*mine, ATTACKS] for part in ("--set", override)]
    workdir = tmp_path / "killed"
    command = [sys.executable, "-m", "pipelines.run", "evaluate", *sets, "--workdir", str(workdir)]
    folder = workdir / "evaluate"
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None:
        record = folder / "eval.json"
        if record.is_file() and json.loads(record.read_text())["attacks"]:
            process.send_signal(number)
            break
        time.sleep(0.02)
    _, err = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number and "Traceback" not in err, err[-2000:]
        assert err.splitlines()[-1].startswith("error: SIGTERM: stopped; the same command goes on")
    assert json.loads((folder / "eval.json").read_text())["pending"]
    run("evaluate", [*mine, ATTACKS], workdir, None, smoke=False)
    ours, theirs = (np.load(f / "flags.npz") for f in (folder, straight))
    assert set(ours) == set(theirs) > {"clean", "PGD-3"}
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.usefixtures("short_closing")
def test_a_suite_in_small(mine: list[str], tmp_path: Path) -> None:
    """A smoke run shortens the attacks of a suite.

    `precision` belongs to training and is refused.
    """
    overrides = [*mine, "attacks=autoattack"]
    folder = run("evaluate", overrides, tmp_path, ["attack_eval"], smoke=True)
    rows = json.loads((folder / "eval.json").read_text())["attacks"]
    assert [row["config"]["steps"] for row in rows[:3]] == [2, 2, 2]
    assert rows[3]["config"]["queries"] == 20
    assert rows[1]["config"]["loss"] == "margin" and "targets" not in rows[1]["config"]
    with pytest.raises(UserError, match="precision: expected float32"):
        run("evaluate", [*overrides, "precision=mixed_bfloat16"], tmp_path, None, smoke=True)


@pytest.mark.usefixtures("short_closing")
def test_two_networks_have_two_results(mine: list[str], tmp_path: Path) -> None:
    """The results of the first network are moved aside with their page.

    A refused evaluation changes nothing.
    """
    folder = Path(mine[0].partition("=")[2]).parent
    first = evaluated(tmp_path, [*mine, "attacks=fgsm"])
    runs = tmp_path / "runs" / "evaluate"
    before = {file: file.read_bytes() for file in runs.rglob("*") if file.is_file()}
    refused = [f"model.path={folder / 'softmax.keras'}", *mine[1:], "attacks=fgsm"]
    with pytest.raises(UserError, match="expected logits, received probabilities"):
        evaluated(tmp_path, refused)
    assert {file: file.read_bytes() for file in runs.rglob("*") if file.is_file()} == before
    network = keras.saving.load_model(folder / "my.keras")
    network.set_weights([2 * weight for weight in network.get_weights()])
    network.save(folder / "second.keras")
    second = evaluated(
        tmp_path, [f"model.path={folder / 'second.keras'}", *mine[1:], "attacks=fgsm"]
    )
    aside = runs / "evaluation.1"
    assert json.loads((aside / "eval.json").read_text()) == first
    assert first["model"]["path"] in (aside / "config.yaml").read_text()
    assert (aside / "report" / "index.html").is_file() and second["model"] != first["model"]
    assert second["network"]["sha256"] != first["network"]["sha256"]


@pytest.mark.usefixtures("short_closing")
def test_more_attacks_other_labels_and_a_smaller_batch(
    mine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Finished attacks stay finished, in the stage as in `evaluate`."""
    evaluated(tmp_path, [*mine, "attacks=[{name: pgd, steps: 3}]"])
    capsys.readouterr()
    more = "attacks=[{name: pgd, steps: 3, label: mine}, fgsm]"
    result = evaluated(tmp_path, [*mine, more, "evaluation.batch_size=7"])
    assert [row["name"] for row in result["attacks"]] == ["mine", "FGSM"]
    said = capsys.readouterr().out
    assert "FGSM: " in said and "mine: " not in said and "clean: " not in said
    evaluated(tmp_path, [*mine, more, "evaluation.batch_size=20"])
    assert "attack_eval: done before, skipped" in capsys.readouterr().out
    evaluated(tmp_path, [*mine, more, "evaluation.rerun=true"])
    assert "mine: " in capsys.readouterr().out
    assert (tmp_path / "runs" / "evaluate" / "evaluation.1" / "eval.json").is_file()


@pytest.mark.usefixtures("short_closing")
def test_results_of_other_code_are_kept_and_named(
    mine: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = [*mine, "attacks=fgsm"]
    before = evaluated(tmp_path, sets)
    monkeypatch.setattr("tfrobust.evaluation.recorder.versions", lambda: {"tfrobust": "9.9.9"})
    capsys.readouterr()
    assert evaluated(tmp_path, sets) == before
    said = capsys.readouterr().out
    assert "attack_eval: done before, skipped" in said
    assert "are kept, this is tfrobust 9.9.9" in said and "evaluation.rerun=true" in said


@pytest.mark.parametrize(
    ("config", "overrides", "stages", "message"),
    [
        (
            "mnist_atlas",
            ["data.dir=none", "data.download=false"],
            None,
            "data.dir: expected mnist",
        ),
        ("digits_adv", [], ["attack_eval"], "run the stage train first"),
        ("digits_adv", [], ["report"], "run the stage train first"),
        ("digits_adv", ["data.batch_size=5000"], None, "batch_size: expected at most the"),
    ],
)
def test_a_refused_run_writes_nothing(
    config: str, overrides: list[str], stages: list[str] | None, message: str, tmp_path: Path
) -> None:
    """A refused run leaves neither a folder nor a lock."""
    with pytest.raises(UserError, match=message):
        run(config, overrides, tmp_path / "runs", stages, smoke=False)
    assert not (tmp_path / "runs").exists()


def test_mistakes(mine: list[str], command: Command, tmp_path: Path) -> None:
    sets = [part for override in mine for part in ("--set", override)]
    wrong = command("evaluate", *sets, "--set", "attacks=autoatack")
    (line,) = wrong.stderr.splitlines()
    assert wrong.returncode == 2 and "did you mean 'autoattack'" in line
    none = command("evaluate", "--set", "data.name=digits")
    assert none.returncode == 2 and "Traceback" not in none.stderr
    assert not (tmp_path / "runs").exists()
