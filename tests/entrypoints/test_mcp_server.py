"""The MCP server, spoken to by the official client over stdio."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from fairlead.catalog import CARDS

mcp = pytest.importorskip("mcp")

FRONT = {"ask", "answer", "plan", "run"}
ERRORS = [
    ("ask", {}, "`text`: Field required"),
    ("ask", {"text": "   "}, "the text is empty"),
    ("ask", {"text": "slow", "colour": "red"}, "`colour`"),
    ("answer", {"option": "1"}, "no question is open"),
    ("answer", {"option": "1", "dialogue": "none"}, "no dialogue `none`"),
    ("quantize", {"bundle": "missing", "data": "d", "out": "o"}, "there is no"),
    (
        "quantize",
        {"bundle": "m", "data": "d", "out": "o", "settings": {"bits": 3}},
        "`settings.bits`",
    ),
    ("plan", {"text": "quantize it to int8", "model": "none.onnx", "data": "d"}, "no model"),
    ("plan", {"text": "my inference is slow", "model": "m", "data": "d"}, ""),
    ("run", {"path": "none.toml"}, "there is no plan"),
    ("run_pipeline", {"plan": {}}, "`plan."),
    ("stop_service", {"name": "none"}, "none"),
]


@asynccontextmanager
async def connected(folder: Path, **options):
    """A client of a fresh `fairlead mcp` in a folder."""
    server = mcp.StdioServerParameters(
        command=sys.executable,
        args=["-m", "fairlead", "mcp"],
        cwd=folder,
        env={**os.environ, "FAIRLEAD_HOME": str(folder / ".fairlead")},
    )
    with (folder / "server.log").open("w") as log:
        async with mcp.Client(mcp.stdio_client(server, errlog=log), **options) as client:
            yield client


def in_session(folder, talk, **options):
    """Run a conversation with the server and return what it gives."""

    async def run():
        with anyio.fail_after(150):
            async with connected(folder, **options) as client:
                return await talk(client)

    return anyio.run(run)


def calls(folder, *wanted):
    """Call tools one after another and return the results."""

    async def talk(client):
        return [await client.call_tool(name, arguments) for name, arguments in wanted]

    return in_session(folder, talk)


def document(result) -> dict:
    assert not result.is_error, result.content[0].text
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


@pytest.fixture(scope="module")
def listing(tmp_path_factory):
    """What one session lists, reads, and refuses."""

    async def refused(call, *arguments):
        with pytest.raises(mcp.MCPError) as caught:
            await call(*arguments)
        return str(caught.value)

    async def talk(client):
        return {
            "server": client.server_info,
            "tools": (await client.list_tools()).tools,
            "resources": (await client.list_resources()).resources,
            "page": await client.read_resource("fairlead://guides/using-ml-production"),
            "no guide": await refused(client.read_resource, "fairlead://guides/none"),
            "no tool": await refused(client.call_tool, "dance", {}),
            "errors": [await client.call_tool(name, given) for name, given, _ in ERRORS],
        }

    return in_session(tmp_path_factory.mktemp("listing"), talk)


def test_the_server_says_who_it_is(listing):
    import fairlead

    assert (listing["server"].name, listing["server"].version) == ("fairlead", fairlead.__version__)


def test_there_is_a_tool_for_the_front_door_and_for_every_skill(listing):
    names = [tool.name for tool in listing["tools"]]

    assert len(set(names)) == len(names)
    assert set(names) >= FRONT | {card.verb for card in CARDS} | {"pack", "stop_service"}


def test_every_tool_says_what_it_does_and_takes(listing):
    for tool in listing["tools"]:
        assert len(tool.description) >= 40, tool.name
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        for name, described in tool.input_schema["properties"].items():
            assert described.get("description"), f"{tool.name}.{name}"
        assert "context" not in tool.input_schema["properties"]


def test_the_settings_of_a_skill_are_those_of_its_config(listing):
    from fairlead.api.skill_settings import config_of

    tools = {tool.name: tool for tool in listing["tools"]}
    for card in CARDS:
        if card.verb == "run_pipeline":
            continue
        settings = tools[card.verb].input_schema["properties"]["settings"]
        assert set(settings["properties"]) == set(config_of(card).model_fields)
        assert settings["additionalProperties"] is False
        for name, described in settings["properties"].items():
            assert described.get("description"), f"{card.verb}.{name}"


def test_required_arguments_are_the_references(listing):
    tools = {tool.name: tool for tool in listing["tools"]}

    assert set(tools["quantize"].input_schema["required"]) == {"bundle", "data", "out"}
    assert set(tools["plan"].input_schema["required"]) == {"text", "model", "data"}
    assert tools["ask"].input_schema["required"] == ["text"]


def test_schemas_are_valid(listing):
    jsonschema = pytest.importorskip("jsonschema")

    for tool in listing["tools"]:
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)


def test_every_guide_is_a_resource(listing):
    from fairlead.api.guides import list_guides

    found = {str(item.uri): item for item in listing["resources"]}

    assert set(found) == {f"fairlead://guides/{guide.id}" for guide in list_guides()}
    assert all(item.mime_type == "text/markdown" for item in found.values())
    assert all(item.description for item in found.values())


def test_a_guide_is_read_as_it_is_shipped(listing):
    from fairlead.api.guides import read_guide

    [page] = listing["page"].contents

    assert page.text == read_guide("using-ml-production").text


def test_what_does_not_exist_is_refused_with_what_does(listing):
    assert "using-ml-production" in listing["no guide"]
    assert "the tools are ask" in listing["no tool"]


def test_a_dialogue_ends_in_a_route(tmp_path):
    async def talk(client):
        first = document(await client.call_tool("ask", {"text": "my model is too slow"}))
        second = document(
            await client.call_tool("answer", {"dialogue": first["dialogue"], "option": "inference"})
        )
        third = document(await client.call_tool("answer", {"option": "1"}))
        return first, second, third

    first, second, third = in_session(tmp_path, talk)

    assert first["ambiguity"] == "speed-inference-or-training"
    assert [option["id"] for option in first["options"]] == ["inference", "training"]
    assert second["ambiguity"] == "model-or-infrastructure"
    assert third["kind"] == "route"
    assert third["skills"] == ["production-debugging-techniques"]
    assert "dialogue" not in third


def test_an_older_client_is_served_as_well(tmp_path):
    async def talk(client):
        return document(await client.call_tool("ask", {"text": "my inference is slow"}))

    assert in_session(tmp_path, talk, mode="legacy")["kind"] == "clarify"


def test_what_was_asked_is_remembered(tmp_path):
    calls(tmp_path, ("ask", {"text": "my inference is slow"}))

    [line] = (tmp_path / ".fairlead" / "router" / "questions.jsonl").read_text().splitlines()
    assert json.loads(line)["text"] == "my inference is slow"


@pytest.mark.parametrize("place", range(len(ERRORS)))
def test_an_error_carries_its_message_and_its_hint(listing, place):
    result, says = listing["errors"][place], ERRORS[place][2]

    assert result.is_error
    assert says in result.structured_content["message"]
    assert result.structured_content["hint"]
    assert "\n\nhint: " in result.content[0].text


@pytest.fixture
def folder(material, tmp_path):
    shutil.copytree(material, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_model_is_packed_and_quantized_with_progress(folder):
    heard = []

    async def hear(progress, total, message):
        heard.append((progress, message))

    async def talk(client):
        rows = {"data": "holdout.parquet", "labels": "label"}
        packed = await client.call_tool(
            "pack", {"model": "model.onnx", "out": "packed", **rows}, progress_callback=hear
        )
        smaller = await client.call_tool(
            "quantize",
            {"bundle": "packed", "out": "small", **rows, "settings": {"max_drop": 0.05}},
        )
        return document(packed), document(smaller)

    packed, smaller = in_session(folder, talk)

    assert packed["files"]["bundle"].endswith("packed")
    assert smaller["skill"] == "quantization-for-inference"
    assert smaller["verdict"] in {"done", "kept", "refused"}
    assert "plots" not in smaller
    assert heard
    assert [told for told, _ in heard] == sorted(told for told, _ in heard)


def test_a_service_answers_until_it_is_stopped_and_dies_with_the_session(folder):
    import httpx

    async def talk(client):
        rows = {"data": "holdout.parquet", "labels": "label"}
        await client.call_tool("pack", {"model": "model.onnx", "out": "packed", **rows})
        first = await client.call_tool(
            "serve", {"bundle": "packed", "settings": {"name": "one", "log_predictions": False}}
        )
        second = await client.call_tool("serve", {"bundle": "packed", "settings": {"name": "two"}})
        urls = [document(item)["details"]["endpoint"]["url"] for item in (first, second)]
        alive = [httpx.get(f"{url}/v2/health/ready").status_code for url in urls]
        document(await client.call_tool("stop_service", {"name": "one"}))
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{urls[0]}/v2/health/ready")
        return urls[1], alive

    url, alive = in_session(folder, talk)

    assert alive == [200, 200]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v2/health/ready")


def test_a_plan_is_made_and_run_and_not_repeated(folder):
    plan = {
        "text": "quantize my model to int8", "model": "model.onnx", "data": "holdout.parquet",
        "labels": "label", "output": "small.toml",
    }  # fmt: skip

    made, first, again = calls(
        folder, ("plan", plan), ("run", {"path": "small.toml"}), ("run", {"path": "small.toml"})
    )

    assert [step["uses"] for step in document(made)["plan"]["steps"]] == [
        "pack",
        "quantization-for-inference",
    ]
    assert (folder / "small.toml").is_file()
    assert document(first)["run"]["status"] in {"done", "refused"}
    assert Path(document(first)["files"]["report"]).is_file()
    assert document(again)["run"]["n_executed"] == 0


def test_a_plan_given_in_place_is_run(folder):
    plan = {
        "text": "quantize my model to int8", "model": "model.onnx", "data": "holdout.parquet",
        "labels": "label",
    }  # fmt: skip

    async def talk(client):
        made = document(await client.call_tool("plan", plan))
        return document(await client.call_tool("run_pipeline", {"plan": made["plan"]}))

    assert len(in_session(folder, talk)["run"]["results"]) == 2


def test_nothing_but_the_protocol_reaches_stdout(folder):
    import subprocess

    messages = [
        {
            "jsonrpc": "2.0", "id": 1, "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18", "capabilities": {},
                "clientInfo": {"name": "raw", "version": "1"},
            },
        },
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {
            "jsonrpc": "2.0", "id": 2, "method": "tools/call",
            "params": {
                "name": "track",
                "arguments": {"command": [sys.executable, "-c", "print('loud')"]},
            },
        },
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "fairlead", "mcp"],
        cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        for message in messages:
            process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.stdin.close()
        rest = process.stdout.read()

    assert [answer["id"] for answer in answers] == [1, 2]
    assert not answers[1]["result"].get("isError"), answers[1]
    assert rest.strip() == ""
    assert process.returncode == 0


def test_a_person_at_a_terminal_is_told_what_it_is_for(tmp_path):
    import pty
    import subprocess

    master, slave = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "mcp"],
        stdin=slave, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60,
    )  # fmt: skip
    os.close(master)
    os.close(slave)

    assert done.returncode == 2
    assert "hint: " in done.stderr


def test_every_skill_works_on_real_input(bundles, tmp_path):
    shutil.copytree(bundles, tmp_path, dirs_exist_ok=True)
    rows = {"data": "holdout.parquet", "labels": "label"}
    wanted = {
        "quantize": {"bundle": "baseline", **rows, "out": "q", "settings": {"max_drop": 0.05}},
        "compress": {"bundle": "baseline", **rows, "out": "c", "settings": {"max_drop": 0.05}},
        "tune": {"bundle": "baseline", **rows, "out": "t", "settings": {"time_limit_s": 2}},
        "serve": {"bundle": "baseline", "settings": {"name": "digits"}},
        "scale": {**rows, "target": "digits", "requests": 100, "settings": {"target_rps": 50}},
        "roll_out": {
            "baseline": "baseline", "candidate": "candidate", **rows,
            "settings": {"max_requests": 300},
        },
        "monitor": {"bundle": "baseline", "data": "shifted.parquet"},
        "diagnose": {"bundle": "baseline", **rows},
        "track": {"command": [sys.executable, "-c", "print(1)"]},
        "plan": {"text": "quantize my model to int8", "model": "model.onnx", **rows},
    }  # fmt: skip

    async def talk(client):
        found = {name: document(await client.call_tool(name, wanted[name])) for name in wanted}
        given = {"plan": found["plan"]["plan"]}
        found["run_pipeline"] = document(await client.call_tool("run_pipeline", given))
        return found

    found = in_session(tmp_path, talk)

    assert set(found) >= {card.verb for card in CARDS}
    for name in set(found) - {"plan"}:
        assert found[name]["verdict"] in {"done", "kept", "refused"}, name
        assert found[name]["summary"]
    assert "data-drift" in found["monitor"]["summary"]


def test_a_cancelled_call_ends_and_makes_room_for_the_next(bundles, tmp_path):
    shutil.copytree(bundles, tmp_path, dirs_exist_ok=True)
    rows = {"data": "holdout.parquet", "labels": "label"}
    told = []

    async def talk(client):
        begun = anyio.Event()

        async def hear(progress, total, message):
            told.append(message)
            begun.set()

        async def release():
            # Without a failure it sends this many requests, which takes minutes.
            await client.call_tool(
                "roll_out",
                {"baseline": "baseline", "candidate": "candidate", **rows,
                 "settings": {"max_requests": 10**6}},
                progress_callback=hear,
            )  # fmt: skip

        async with anyio.create_task_group() as group:
            group.start_soon(release)
            await begun.wait()
            group.cancel_scope.cancel()
        with anyio.fail_after(60):
            return document(await client.call_tool("diagnose", {"bundle": "baseline", **rows}))

    assert in_session(tmp_path, talk)["verdict"] == "done"
    assert told
