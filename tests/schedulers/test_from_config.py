"""Schedulers from the files that lie on the Hub, also those written for another solver."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from contextlib import suppress
from dataclasses import fields
from typing import Any

import diffusers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pare.errors import ConfigError, PareError, SchedulerError, SettingError
from pare.schedulers import SCHEDULERS, OtherSolver, build_scheduler, rebuild_scheduler
from tests.schedulers import reference
from tests.schedulers.analytic import model
from tests.schedulers.rollout import KARRAS, NAMES, SD14, distance, rollout, unit_noise

# diffusers turns tensors into arrays in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# SD 2.1's file: DDIM's, with a key of PNDM's in it.
SD21 = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
FULL = {  # every key written out, as newer fine-tunes have it
    name: reference.build(name, SD14).config for name in NAMES
}


def same_run(name: str, config: dict[str, Any], steps: int = 10, **options: Any) -> None:
    told = config | {"use_karras_sigmas": True} if options.get("karras") else config
    scheduler = build_scheduler(config, "a file", name, **options)
    ours = rollout(scheduler, model(config), unit_noise(), steps)
    theirs = reference.rollout(name, told, model(config), unit_noise(), steps)
    assert distance(ours, theirs) < 1e-5


def test_a_models_default_scheduler_is_its_own() -> None:
    assert build_scheduler(SD14, "a file").name == "pndm"
    assert build_scheduler(SD21, "a file").name == "ddim"
    assert build_scheduler(SD21, "a file").prediction_type == "v_prediction"


@pytest.mark.parametrize("name", NAMES)
def test_any_solver_from_the_file_of_another(name: str) -> None:
    same_run(name, SD14)
    if name != "pndm":  # of a v-model diffusers' PNDM is wrong: see test_deviations.py
        same_run(name, SD21)


@pytest.mark.parametrize("name", KARRAS)
def test_karras_sigmas_as_an_option(name: str) -> None:
    same_run(name, SD14, karras=True)
    same_run(name, SD21, karras=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_files_with_every_key(name: str, source: str) -> None:
    """diffusers drops the keys that it had filled in itself; a file has forgotten which."""
    config = {key: value for key, value in FULL[source].items() if key != "_use_default_values"}
    config = json.loads(json.dumps(config).replace("-Infinity", "null"))
    if config.pop("lambda_min_clipped", "absent") is None:
        config["lambda_min_clipped"] = -float("inf")
    config.setdefault("clip_sample", False)  # see test_deviations.py
    if config["timestep_spacing"] == "linspace" and name in ("ddim", "ddim-inverse", "pndm"):
        assert build_scheduler(config, "a file", name).timesteps(10)
        return  # there diffusers is wrong: see test_deviations.py
    same_run(name, config)


def parameters(kind: Any) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_diffusers_is_known(name: str) -> None:
    """Each is modelled, pinned or unused, and only one of these."""
    config = SCHEDULERS[name].config_type
    modelled = {field.name for field in fields(config)}
    kinds = [modelled, set(config.PINNED), set(config.UNUSED)]
    assert sum(map(len, kinds)) == len(set().union(*kinds))
    assert set(config.HUB_DEFAULTS) == modelled
    own = parameters(reference.CLASSES[name])
    assert own <= set().union(*kinds)
    assert modelled <= own | {"rescale_betas_zero_snr"}  # LMS and PNDM of diffusers ignore it
    assert {"algorithm_type"} & own <= set(config.UNUSED)  # it chooses among several of our solvers
    about_sampling = {
        "algorithm_type",
        "s_churn",
        "sample_max_value",
        "dynamic_thresholding_ratio",
        "flow_shift",
    }
    meaningless = {"time_shift_type", "use_dynamic_shifting"} | about_sampling
    assert own & set(config.UNUSED) <= meaningless
    for other in (
        *reference.CLASSES.values(),
        diffusers.DDPMScheduler,
        diffusers.DEISMultistepScheduler,
        diffusers.HeunDiscreteScheduler,
        diffusers.KDPM2AncestralDiscreteScheduler,
        diffusers.LCMScheduler,
        diffusers.UniPCMultistepScheduler,
    ):
        assert parameters(other) <= set().union(*kinds), other


@pytest.mark.parametrize("name", NAMES)
def test_absent_keys_mean_what_they_mean_to_diffusers(name: str) -> None:
    kind = reference.CLASSES[name]
    theirs = inspect.signature(kind.__init__).parameters
    config = SCHEDULERS[name].config_type
    for key, value in config.HUB_DEFAULTS.items():
        if key in theirs:
            assert value == theirs[key].default, key
    ours = config.read({"_class_name": kind.__name__}, "an empty file")
    assert {field.name: getattr(ours, field.name) for field in fields(ours)} == config.HUB_DEFAULTS


def test_names_of_other_solvers_variants() -> None:
    unipc = SD14 | {
        "_class_name": "UniPCMultistepScheduler",
        "solver_type": "bh2",
        "solver_p": None,
    }
    same_run("dpm++2m", unipc)
    deis = SD14 | {"algorithm_type": "deis", "solver_type": "logrho"}
    assert build_scheduler(deis, "a file", "dpm++2m").timesteps(9)


@pytest.mark.parametrize(
    ("name", "keys", "word"),
    [
        ("dpm++2m", {"solver_order": 4}, "solver_order"),
        ("dpm++2m", {"solver_type": "rk"}, "solver_type"),
        ("dpm++2m", {"use_flow_sigmas": True}, "use_flow_sigmas"),
        ("dpm++2m", {"thresholding": True}, "thresholding"),
        ("dpm++2m", {"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        ("dpm++2m", {"final_sigmas_type": "one"}, "final_sigmas_type"),
        (
            "euler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            "timestep_type",
        ),
        ("euler", {"interpolation_type": "log_linear"}, "interpolation_type"),
        ("euler", {"sigma_max": 80.0, "use_karras_sigmas": True}, "sigma_max"),
        ("lms", {"use_beta_sigmas": True, "use_karras_sigmas": True}, "use_beta_sigmas"),
        ("unipc", {"predict_x0": False}, "predict_x0"),
        ("unipc", {"disable_corrector": ["0"]}, "disable_corrector"),
        ("lcm", {"original_inference_steps": 1001}, "original_inference_steps"),
        ("ddim", {"thresholding": True}, "thresholding"),
        ("pndm", {"skip_prk_steps": 2}, "skip_prk_steps"),
        ("lms", {"use_karras_sigmas": "yes"}, "use_karras_sigmas"),
    ],
)
def test_what_a_solver_does_not_do_is_refused(name: str, keys: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        build_scheduler(SD14 | keys, "the file", name)
    assert str(caught.value).startswith("the file ")


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"timestep_spaceing": "leading"}, "timestep_spacing"),
        ({"tensor_format": "pt"}, "tensor_format"),
        ({"skip_prk_steps": 1}, "skip_prk_steps"),
        ({"predict_epsilon": True}, "predict_epsilon"),
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler"),
    ],
)
def test_what_only_strict_refuses(keys: dict[str, Any], word: str) -> None:
    name = None if "_class_name" in keys else "pndm"
    with pytest.raises(PareError, match=word):
        build_scheduler(SD14 | keys, "the file", name, strict=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lenient = build_scheduler(SD14 | keys, "the file", name)
    assert lenient.config.prediction_type == "epsilon"
    silent = {"skip_prk_steps", "predict_epsilon"}  # the same thing in other words
    assert [word in str(one.message) for one in said] == [True] * (not silent & keys.keys())


def test_predict_epsilon_of_old_files() -> None:
    said_so = build_scheduler(SD14 | {"predict_epsilon": False}, "a file", "ddim")
    assert said_so.prediction_type == "sample"


def test_the_nearest_solver_takes_the_place_of_one_that_pare_lacks() -> None:
    for keys, name in (
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "rho": 7.0}, "euler"),
        ({"_class_name": "SASolverScheduler"}, "dpm++2m-sde"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"},
            "dpm++2m",
        ),
    ):
        with pytest.warns(OtherSolver, match=re.escape(f"{name} takes its place")):
            assert build_scheduler(SD14 | keys, "a file").name == name
    for flow in ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"):
        with pytest.raises(SchedulerError, match="does not have"):
            build_scheduler(SD14 | {"_class_name": flow}, "a file")


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        *[({"_class_name": kind.config_type.HUB_CLASS}, name)
          for name, kind in SCHEDULERS.items()
          if kind.config_type.HUB_CLASS and not name.endswith("-sde")],
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
         "dpm++2m-sde"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "deis"}, "dpm++2m"),
    ],
)  # fmt: skip
def test_the_solver_that_a_file_names(keys: dict[str, Any], name: str) -> None:
    assert build_scheduler(SD14 | keys, "a file").name == name


def test_a_habit_of_another_solver_is_no_obstacle() -> None:
    habits = {"thresholding": True, "algorithm_type": "sde-dpmsolver++", "solver_order": 4}
    assert build_scheduler(SD14 | habits, "a file", "euler").name == "euler"


def test_files_that_name_no_solver_of_ours() -> None:
    with pytest.raises(SchedulerError, match="VQDiffusionScheduler"):
        build_scheduler(SD14 | {"_class_name": "VQDiffusionScheduler"}, "a file")
    odd: object
    for odd in (3, ["PNDMScheduler"], {}):
        with pytest.raises(SchedulerError, match="which pare does not have"):
            build_scheduler(SD14 | {"_class_name": odd}, "a file")
    silent = {key: value for key, value in SD14.items() if key != "_class_name"}
    with pytest.raises(SchedulerError, match="does not name its solver"):
        build_scheduler(silent, "a file")
    assert build_scheduler(silent, "a file", "lms").name == "lms"
    with pytest.raises(SettingError, match="no scheduler 'dpm'"):
        build_scheduler(SD14, "a file", "dpm")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"karras": True}),
        ("ddim", {"order": 2}),
        ("pndm", {"eta": 0.5}),
        ("euler", {"order": 1}),
        ("euler-ancestral", {"karras": True}),
        ("ddim-inverse", {"eta": 0.5}),
        ("lms", {"eta": 0.0}),
        ("ddim", {"config": None, "schedule": 1}),
        ("lms", {"orders": 2}),
    ],
)
def test_options_that_a_solver_does_not_have(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"the scheduler {name} has no option"):
        build_scheduler(SD14, "a file", name, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpm++2m", {"karras": "yes"}),
        ("dpm++2m", {"karras": 1}),
        ("dpm++2m", {"order": 4}),
        ("dpm++2m", {"sigmas": "lu"}),
        ("dpm++2m", {"order": True}),
        ("lms", {"order": 0}),
        ("lms", {"order": 5}),
        ("lms", {"order": 2.0}),
        ("lms", {"order": "2"}),
        ("ddim", {"eta": -0.1}),
        ("ddim", {"eta": 1.1}),
        ("ddim", {"eta": float("nan")}),
        ("ddim", {"eta": True}),
        ("ddim", {"eta": "1"}),
        ("ddim", {"spacing": "even"}),
        ("ddim", {"spacing": ["leading"]}),
        ("ddim", {"prediction_type": "eps"}),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(options))):
        build_scheduler(SD14, "a file", name, **options)


def test_an_option_of_none_leaves_it_to_the_file() -> None:
    assert build_scheduler(SD14, "a file", "ddim", eta=None, spacing=None, karras=None)


def test_options_stand_before_the_file() -> None:
    bad = SD14 | {"solver_order": 4, "timestep_spacing": "linspace"}
    ours = build_scheduler(bad, "a file", "dpm++2m", order=2, spacing="trailing")
    assert ours.describe()["config"]["solver_order"] == 2
    assert ours.describe()["config"]["timestep_spacing"] == "trailing"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in NAMES],
        *[(name, {"karras": True, "spacing": "leading"}) for name in KARRAS],
        ("ddim", {"eta": 0.3}),
        ("lms", {"order": 3, "prediction_type": "v_prediction"}),
    ],
)
def test_a_scheduler_is_built_again_from_its_description(
    name: str, options: dict[str, Any]
) -> None:
    one = build_scheduler(SD14, "a file", name, **options)
    description = json.loads(json.dumps(one.describe()))
    other = rebuild_scheduler(description)
    assert other.describe() == one.describe()
    assert other.timesteps(20) == one.timesteps(20)
    assert type(other) is type(one)
    for key, value in options.items():
        if key in one.field_options:
            assert description[key] == value


def test_a_description_with_trained_betas() -> None:
    betas = {"num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.3, 0.4]}
    one = build_scheduler(SD14 | betas, "a file", "ddim")
    other = rebuild_scheduler(json.loads(json.dumps(one.describe())))
    assert other.timesteps(4) == one.timesteps(4)


ANYTHING: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
)
ANYTHING |= st.one_of(
    st.lists(st.floats(), max_size=3), st.dictionaries(st.text(max_size=3), st.none())
)
KEYS = sorted(set(SD14) | {key for config in FULL.values() for key in config} | {"nonsense"})


@given(st.sampled_from(NAMES), st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=4))
def test_no_file_ends_in_anything_but_a_sentence(name: str, keys: dict[str, Any]) -> None:
    with suppress(PareError):
        build_scheduler(SD14 | keys, "a file", name).timesteps(1)
