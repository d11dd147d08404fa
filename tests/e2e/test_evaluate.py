"""A user's own network under `evaluate`: results, refusals, interruption and restart."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from pipelines import config as configs
from pipelines import runner
from pipelines.resolve import load_spec
from pipelines.run_folder import RunFolder
from pipelines.runner import run
from pipelines.stages import attack_eval
from tests.e2e.conftest import Command
from tests.e2e.runs import start, wait_until
from tests.errors import error_line
from tests.products import slow_but
from tfrobust.errors import UserError

ATTACKS = "attacks=[{name: pgd, steps: 3}, {name: apgd, steps: 6}, {name: square, queries: 40}]"
PGD = "attacks={name: pgd, steps: 3}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of networks and arrays of two classes, bright and dark images [6, 6, 1]."""
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
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> list[str]:
    """Return the overrides that name the arrays and eps."""
    return ["data.name=npz", f"data.path={folder / 'my.npz'}", "threat.eps=0.17"]


@pytest.fixture(scope="module")
def base(folder: Path, data: list[str]) -> list[str]:
    """Return the overrides that name the network of logits, the arrays and eps."""
    return [f"model.path={folder / 'my.keras'}", *data]


def evaluated(tmp_path: Path, overrides: list[str]) -> dict[str, Any]:
    """Run `evaluate` and return its eval.json."""
    run_folder = run("evaluate", overrides, tmp_path / "runs", None, smoke=False)
    return json.loads((run_folder / "eval.json").read_text())


@pytest.mark.usefixtures("short_closing")
def test_cascade_reports_the_exact_worst_case(
    folder: Path, base: list[str], tmp_path: Path
) -> None:
    """PGD breaks an image of the linear network if its mean is within eps of 0.5."""
    result = evaluated(tmp_path, [*base, ATTACKS])
    with np.load(folder / "my.npz") as arrays:
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
def test_corruptions_join_the_record_and_the_page_of_finished_attacks(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network looks at the mean of an image, which contrast leaves as it is."""
    before = evaluated(tmp_path, [*base, PGD])
    overrides = [*base, PGD, "evaluation.corruptions={names: [fog, contrast], severities: [1, 5]}"]
    result = evaluated(tmp_path, overrides)
    assert result["attacks"] == before["attacks"] and "corruptions" not in before
    fog, contrast = result["corruptions"]["rows"]
    assert (fog["name"], contrast["name"]) == ("fog", "contrast")
    assert contrast["accuracy"] == [result["clean_accuracy"]] * 2 > fog["accuracy"]
    mean = result["corruptions"]["accuracy"]
    assert f"corruptions: {mean:.2%} of 60" in capsys.readouterr().out
    page = (tmp_path / "runs" / "evaluate" / "report" / "index.html").read_text()
    assert "<h2>Corruptions</h2>" in page and 'id="corruptions-' in page
    evaluated(tmp_path, overrides)
    assert "attack_eval: done before, skipped" in capsys.readouterr().out


@pytest.mark.usefixtures("short_closing")
def test_saved_model_and_probabilities_give_the_same_accuracy(
    folder: Path, data: list[str], tmp_path: Path
) -> None:
    def accuracies(name: str, *overrides: str) -> dict[str, Any]:
        settings = [f"model.path={folder / name}", *data, PGD, "evaluation.save=uint8", *overrides]
        return evaluated(tmp_path / name, settings)

    plain = accuracies("my.keras")
    assert accuracies("exported")["robust_accuracy"] == plain["robust_accuracy"]
    converted = accuracies("softmax.keras", "model.outputs=probabilities")
    assert converted["robust_accuracy"] == plain["robust_accuracy"]
    images = tmp_path / "my.keras" / "runs" / "evaluate" / "adversarial.npz"
    with np.load(images) as saved:
        assert saved["image"].dtype == np.uint8 and len(saved["image"]) == 60
    images.unlink()
    assert accuracies("my.keras")["rounded_robust_accuracy"] is not None
    assert images.is_file()
    assert plain["robust_accuracy"] <= plain["rounded_robust_accuracy"] < plain["clean_accuracy"]


@pytest.mark.usefixtures("short_closing")
@pytest.mark.slow
def test_one_of_two_outputs_is_chosen_by_its_name(
    base: list[str], data: list[str], tmp_path: Path
) -> None:
    """The network takes images of any size; its score is the brightness, as that of `my.keras`."""
    image = keras.Input((None, None, 1))
    bright = keras.layers.GlobalAveragePooling2D()(image)
    scores = keras.layers.Dense(2, name="scores")
    network = keras.Model(image, [scores(bright), keras.layers.Dense(3, name="other")(bright)])
    scores.set_weights([np.array([[-1.0, 1.0]]), np.array([0.5, -0.5])])
    network.save(tmp_path / "two.h5")
    stages = "stages=[attack_eval,export]"
    two = [f"model.path={tmp_path / 'two.h5'}", *data, PGD, stages]
    with pytest.raises(UserError, match="model.path: .*other, scores; name that of the logits by"):
        evaluated(tmp_path, two)
    with pytest.raises(UserError, match="model.path: output: .*did you mean 'scores'"):
        evaluated(tmp_path, [*two, "model.output=score"])
    named = evaluated(tmp_path, [*two, "model.output=scores"])
    plain = evaluated(tmp_path / "plain", [*base, PGD, stages])
    assert named["robust_accuracy"] == plain["robust_accuracy"]
    exported = tmp_path / "runs" / "evaluate" / "saved_model" / "saved_model.pb"
    again = [f"model.path={exported}", *data, PGD, "stages=[attack_eval]"]
    assert evaluated(tmp_path / "again", again)["robust_accuracy"] == plain["robust_accuracy"]


@pytest.mark.usefixtures("short_closing")
def test_logits_and_probabilities_are_not_confused(
    folder: Path, base: list[str], data: list[str], tmp_path: Path
) -> None:
    softmax = [f"model.path={folder / 'softmax.keras'}", *data, PGD]
    evaluated(tmp_path, [*softmax, "model.outputs=probabilities"])
    with pytest.raises(UserError, match="expected logits, received probabilities"):
        evaluated(tmp_path, softmax)
    with pytest.raises(UserError, match="model.outputs: expected a network of probabilities"):
        evaluated(tmp_path, [*base, PGD, "model.outputs=probabilities"])
    surrogate = f"attacks={{name: transfer, source: {folder / 'softmax.keras'}, attack: fgsm}}"
    with pytest.raises(UserError, match="source: expected a network of logits .or outputs: prob"):
        evaluated(tmp_path / "refused", [*base, surrogate])
    assert not (tmp_path / "refused").exists()


@pytest.mark.usefixtures("short_closing")
@pytest.mark.parametrize("kind", slow_but(["float32", "uint8"], ["uint8"]))
def test_saved_images_of_one_evaluation_attack_another(
    base: list[str], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded saved images stay in the ball too: 0.17 is 43.35 / 255."""
    first = evaluated(tmp_path, [*base, PGD, f"evaluation.save={kind}"])
    images = tmp_path / "runs" / "evaluate" / "adversarial.npz"
    attacks = f"attacks=[{{name: saved_images, path: {images}}}]"
    second = evaluated(tmp_path / "second", [*base, attacks])
    rounded = first.get("rounded_robust_accuracy", first["robust_accuracy"])
    assert second["robust_accuracy"] == rounded
    with np.load(images) as arrays:
        half = len(arrays["image"]) // 2
        np.savez(images, **{key: arrays[key][:half] for key in ("image", "index")})
    monkeypatch.setattr(attack_eval, "FIRST", 1)  # the missing images come later
    with pytest.raises(UserError, match="path: expected an image for each of"):
        evaluated(tmp_path / "refused", [*base, attacks])
    assert not (tmp_path / "refused").exists()


def test_images_between_the_256_levels_are_not_saved_as_uint8(
    folder: Path, base: list[str], tmp_path: Path
) -> None:
    with np.load(folder / "my.npz") as arrays:
        x, y = arrays["x_test"] * np.float32(0.99), arrays["y_test"]
    np.savez(tmp_path / "off.npz", x_test=x, y_test=y)
    settings = [*base, f"data.path={tmp_path / 'off.npz'}", "attacks=fgsm", "evaluation.save=uint8"]
    with pytest.raises(UserError, match="save: expected float32, since the images are not"):
        evaluated(tmp_path / "refused", settings)
    assert not (tmp_path / "refused").exists()


SIGNALS = [signal.SIGKILL, signal.SIGTERM]


@pytest.mark.usefixtures("short_closing")
@pytest.mark.parametrize("number", slow_but(SIGNALS, [signal.SIGTERM]))
def test_killed_evaluation_resumes_to_the_same_flags(
    base: list[str], tmp_path: Path, number: int
) -> None:
    """A signal after the first attack and a restart give the flags of an uninterrupted run."""
    straight = run("evaluate", [*base, ATTACKS], tmp_path / "straight", None, smoke=False)
    workdir = tmp_path / "killed"
    record = workdir / "evaluate" / "eval.json"
    process = start("evaluate", workdir=workdir, overrides=[*base, ATTACKS])
    wait_until(lambda: record.is_file() and json.loads(record.read_text())["attacks"], process)
    process.send_signal(number)
    _, err = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number and "Traceback" not in err, err[-2000:]
        assert err.splitlines()[-1].startswith("error: SIGTERM: stopped; the same command goes on")
    assert json.loads(record.read_text())["pending"]
    run("evaluate", [*base, ATTACKS], workdir, None, smoke=False)
    ours, theirs = (np.load(path / "flags.npz") for path in (record.parent, straight))
    assert set(ours) == set(theirs) > {"clean", "PGD-3"}
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.usefixtures("short_closing")
def test_smoke_run_shortens_the_attacks_of_a_suite(base: list[str], tmp_path: Path) -> None:
    """`precision` belongs to training and is refused."""
    overrides = [*base, "attacks=autoattack"]
    run_folder = run("evaluate", overrides, tmp_path, ["attack_eval"], smoke=True)
    rows = json.loads((run_folder / "eval.json").read_text())["attacks"]
    assert [row["config"]["steps"] for row in rows[:3]] == [2, 2, 2]
    assert rows[3]["config"]["queries"] == 20
    assert rows[1]["config"]["loss"] == "margin" and "targets" not in rows[1]["config"]
    with pytest.raises(UserError, match="precision: expected float32"):
        run("evaluate", [*overrides, "precision=mixed_bfloat16"], tmp_path, None, smoke=True)


@pytest.mark.usefixtures("short_closing")
def test_results_of_another_network_are_moved_aside(
    folder: Path, base: list[str], data: list[str], tmp_path: Path
) -> None:
    """The page of the first network moves too; a refused evaluation changes no file."""
    runs = tmp_path / "runs" / "evaluate"

    def files() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in runs.rglob("*") if file.is_file()}

    first = evaluated(tmp_path, [*base, "attacks=fgsm"])
    before = files()
    refused = [f"model.path={folder / 'softmax.keras'}", *data, "attacks=fgsm"]
    with pytest.raises(UserError, match="expected logits, received probabilities"):
        evaluated(tmp_path, refused)
    assert files() == before
    network = keras.saving.load_model(folder / "my.keras")
    network.set_weights([2 * weight for weight in network.get_weights()])
    network.save(folder / "second.keras")
    again = [f"model.path={folder / 'second.keras'}", *data, "attacks=fgsm"]
    second = evaluated(tmp_path, again)
    aside = runs / "evaluation.1"
    assert json.loads((aside / "eval.json").read_text()) == first
    assert first["model"]["path"] in (aside / "config.yaml").read_text()
    assert (aside / "report" / "index.html").is_file() and second["model"] != first["model"]
    assert second["network"]["sha256"] != first["network"]["sha256"]


@pytest.mark.usefixtures("short_closing")
def test_finished_attacks_are_not_repeated_when_settings_change(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Another list, label or batch size repeats no finished attack; `rerun` repeats all."""
    evaluated(tmp_path, [*base, PGD])
    capsys.readouterr()
    more = "attacks=[{name: pgd, steps: 3, label: mine}, fgsm]"
    result = evaluated(tmp_path, [*base, more, "evaluation.batch_size=7"])
    assert [row["name"] for row in result["attacks"]] == ["mine", "FGSM"]
    out = capsys.readouterr().out
    assert "FGSM: " in out and "mine: " not in out and "clean: " not in out
    evaluated(tmp_path, [*base, more, "evaluation.batch_size=20"])
    assert "attack_eval: done before, skipped" in capsys.readouterr().out
    evaluated(tmp_path, [*base, more, "evaluation.rerun=true"])
    assert "mine: " in capsys.readouterr().out
    assert (tmp_path / "runs" / "evaluate" / "evaluation.1" / "eval.json").is_file()


@pytest.mark.usefixtures("short_closing")
def test_a_card_of_former_numbers_does_not_stay(base: list[str], tmp_path: Path) -> None:
    card = tmp_path / "runs" / "evaluate" / "MODEL_CARD.md"
    evaluated(tmp_path, [*base, "attacks=fgsm"])
    evaluated(tmp_path, [*base, "attacks=fgsm", "stages=[attack_eval]"])
    assert card.is_file()  # nothing was evaluated
    evaluated(tmp_path, [*base, "attacks=[fgsm, uniform_noise]", "stages=[attack_eval]"])
    assert not card.exists()


@pytest.mark.usefixtures("short_closing")
def test_results_of_another_version_are_kept_and_named(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [*base, "attacks=fgsm"]
    before = evaluated(tmp_path, sets)
    monkeypatch.setattr("tfrobust.evaluation.recorder.versions", lambda: {"tfrobust": "9.9.9"})
    capsys.readouterr()
    assert evaluated(tmp_path, sets) == before
    out = capsys.readouterr().out
    assert "attack_eval: done before, skipped" in out
    assert "are kept, this is tfrobust 9.9.9" in out and "evaluation.rerun=true" in out


@pytest.mark.parametrize(
    ("config", "overrides", "stages", "message"),
    [
        ("mnist_atlas", ["data.dir=none", "data.download=false"], None, "data.dir: expected mnist"),
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


def test_mistakes_of_the_evaluate_command_are_one_line(
    base: list[str], command: Command, tmp_path: Path
) -> None:
    sets = [part for override in base for part in ("--set", override)]
    wrong = command("evaluate", *sets, "--set", "attacks=autoatack")
    (line,) = wrong.stderr.splitlines()
    assert wrong.returncode == 2 and "did you mean 'autoattack'" in line
    none = command("evaluate", "--set", "data.name=digits")
    assert none.returncode == 2 and "Traceback" not in none.stderr
    assert not (tmp_path / "runs").exists()


def test_another_network_is_not_evaluated_in_the_folder_of_a_training(tmp_path: Path) -> None:
    """Its page would have the curves, and a comparison the times, of that training."""
    folder = RunFolder(tmp_path / "mine")
    folder.path.mkdir()
    folder.history.touch()

    def check(path: Path) -> None:
        spec: Any = SimpleNamespace(train=None, config={"model": {"path": str(path)}})
        runner._check_folder(folder, spec, smoke=False, trains=False)

    check(folder.path)
    check(folder.path / "model.onnx")
    line = error_line(lambda: check(tmp_path / "other.keras"))
    assert line.startswith(f"{folder.path}: expected a folder without a training, whose curves")
    folder.history.unlink()
    check(tmp_path / "other.keras")


def test_no_run_replaces_the_table_and_the_page_of_a_suite(tmp_path: Path) -> None:
    folder, spec = RunFolder(tmp_path / "mine"), load_spec("digits_adv", [], smoke=False)
    folder.path.mkdir()
    (folder.path / "table.csv").touch()
    line = error_line(lambda: runner._check_folder(folder, spec, smoke=False, trains=True))
    assert line.startswith(f"{folder.path}: expected the folder of a run, received that of a suite")


def test_no_run_replaces_the_config_from_which_it_is_made(tmp_path: Path) -> None:
    """The comments of the user would be lost."""
    (tmp_path / "mine").mkdir()
    config = tmp_path / "mine" / "config.yaml"
    config.write_text(f"# mine\nname: mine\ninclude: {configs.find('digits_adv')}\n")
    line = error_line(lambda: run(str(config), [], tmp_path, None, smoke=True))
    assert line.startswith(f"{config}: expected a config outside the folder of its run")
    assert config.read_text().startswith("# mine\n")


def test_more_held_out_images_than_there_are_are_refused_under_their_key() -> None:
    overrides = ["data.validation=1437", "evaluation.split=validation"]
    spec = load_spec("digits_adv", overrides, smoke=False)
    line = error_line(lambda: spec.evaluated)
    assert line.startswith("data.validation: expected fewer than the 1437 training images")
