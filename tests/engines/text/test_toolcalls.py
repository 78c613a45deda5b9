"""Which format a template's model writes: the vendors' own templates, and small ones."""

from pathlib import Path

import pytest

from oxlo_local.calls import Message, ToolCall
from oxlo_local.engines.text.conversation import TOOL
from oxlo_local.engines.text.prompt import ChatTemplate
from oxlo_local.engines.text.toolcalls import detect
from oxlo_local.engines.text.toolcalls.generic import GENERIC
from oxlo_local.engines.text.toolcalls.hermes import HERMES

VENDORS = Path(__file__).parents[4] / "shared" / "templates"
FORMAT_OF = {
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "ibm-granite-granite-4.0": "hermes",
    "ibm-granite-granite-3.3-2B-Instruct": "granite",
    "Qwen3-Coder": "qwen3-coder",
    "Qwen3.5-4B": "qwen3-coder",
    "ByteDance-Seed-OSS": "seed",
    "GLM-4.6": "glm",
    "GLM-4.7-Flash": "glm",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral-v3",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral-v7",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral-v7",
    "unsloth-mistral-Devstral-Small-2507": "mistral-v7",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek-r1",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek-r1",
    "deepseek-ai-DeepSeek-V3.1": "deepseek-v3.1",
    "deepseek-ai-DeepSeek-V3.2": "deepseek-v3.2",
    "deepseek-ai-DeepSeek-V4": "deepseek-v4",
    "Kimi-K2-Instruct": "kimi",
    "moonshotai-Kimi-K2": "kimi",
    "MiniMax-M1": "minimax-m1",
    "MiniMax-M2": "minimax-m2",
    "openbmb-MiniCPM5-1B": "minicpm",
    "google-gemma-4-31B-it": "gemma4",
    "google-gemma-2-2b-it": "generic",
    "microsoft-Phi-3.5-mini-instruct": "generic",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "command-r7b",
    "CohereForAI-c4ai-command-r-plus-tool_use": "command-r",
    "unsloth-Apriel-1.5": "apriel",
    "NVIDIA-Nemotron-Nano-v2": "nemotron",
    "fireworks-ai-llama-3-firefunction-v2": "firefunction",
    "GigaChat3.1-10B-A1.8B": "gigachat",
    "meetkai-functionary-medium-v3.1": "functionary",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3",
    "openai-gpt-oss-120b": "harmony",
}
vendors = sorted(VENDORS.glob("*.jinja"))
TALK = [
    Message("user", "Where?"),
    Message(
        "assistant",
        "",
        tool_calls=[
            ToolCall("call_abcdefghijklm", "findplace", '{"place": "Rome"}'),
            ToolCall("call_b", "findplace", '{"place": "Oslo"}'),
        ],
    ),
    Message("tool", "north", tool_call_id="call_b"),
    Message("tool", "south", tool_call_id="call_abcdefghijklm"),
]


@pytest.mark.skipif(not vendors, reason="the folder of vendors' templates is not beside this checkout")
@pytest.mark.parametrize("path", vendors, ids=lambda path: path.stem)
def test_a_vendors_template_is_told_of_tools_calls_and_results_in_the_order_of_the_calls(path: Path) -> None:
    template = ChatTemplate(path.read_text(), bos_token="<s>", eos_token="</s>")
    assert template.format.name == FORMAT_OF.get(path.stem, template.format.name)
    text = template.render(TALK, tools=[TOOL])
    assert "findplace" in text
    assert -1 < text.index("Rome") < text.index("Oslo")
    assert -1 < text.index("south") < text.rindex("north")
    assert "Finds." not in template.render(TALK[:1])


def test_a_template_that_knows_no_tools_is_generic() -> None:
    assert detect("", "{{ messages[0].content }}", takes_tools=False) is GENERIC


def test_a_template_that_shows_tools_but_no_calls_is_known_by_its_words() -> None:
    assert detect("", "write <tool_call>", takes_tools=True) is HERMES
    assert detect("", "write <tool_call>", takes_tools=False) is GENERIC
