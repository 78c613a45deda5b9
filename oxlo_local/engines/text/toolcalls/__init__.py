"""How models write tool calls: one small file for each format, and the list of them in order of detection."""

import re

from oxlo_local.engines.text.toolcalls.command_r import COMMAND_R, COMMAND_R7B
from oxlo_local.engines.text.toolcalls.deepseek import DEEPSEEK_R1, DEEPSEEK_V4, DEEPSEEK_V31, DEEPSEEK_V32
from oxlo_local.engines.text.toolcalls.envelopes import APRIEL, FIREFUNCTION, FUNCTIONARY, GIGACHAT, NEMOTRON
from oxlo_local.engines.text.toolcalls.format import Format
from oxlo_local.engines.text.toolcalls.gemma import GEMMA4
from oxlo_local.engines.text.toolcalls.generic import GENERIC
from oxlo_local.engines.text.toolcalls.glm import GLM
from oxlo_local.engines.text.toolcalls.granite import GRANITE
from oxlo_local.engines.text.toolcalls.harmony import HARMONY
from oxlo_local.engines.text.toolcalls.hermes import HERMES
from oxlo_local.engines.text.toolcalls.kimi import KIMI
from oxlo_local.engines.text.toolcalls.llama3 import LLAMA3
from oxlo_local.engines.text.toolcalls.minimax import MINICPM, MINIMAX_M1, MINIMAX_M2
from oxlo_local.engines.text.toolcalls.mistral import MISTRAL_V3, MISTRAL_V7
from oxlo_local.engines.text.toolcalls.qwen3_coder import QWEN3_CODER, SEED

FORMATS: tuple[Format, ...] = (
    HARMONY, QWEN3_CODER, SEED, GLM, HERMES, MISTRAL_V3, MISTRAL_V7, DEEPSEEK_R1, DEEPSEEK_V31, DEEPSEEK_V32,
    DEEPSEEK_V4, KIMI, MINIMAX_M2, MINIMAX_M1, MINICPM, GEMMA4, GRANITE, COMMAND_R7B, COMMAND_R, APRIEL, NEMOTRON,
    FIREFUNCTION, GIGACHAT, FUNCTIONARY, LLAMA3,
)  # fmt: skip


def detect(rendered: str, source: str, *, takes_tools: bool) -> Format:
    """The format of a template that renders a call as `rendered` ("" = it renders none) and is itself `source`.

    `takes_tools`: it shows the model which tools there are. GENERIC where nothing is recognised.
    """
    for format in FORMATS:
        if rendered and re.search(format.detect, rendered):
            return format
    for format in FORMATS:
        if takes_tools and not rendered and format.source and re.search(format.source, source):
            return format
    return GENERIC
