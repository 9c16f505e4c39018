"""Chat templates known by name (--chat-template NAME), for model files that bring none or a wrong one."""

_ROLES = "{% for m in messages %}"
_END = "{% endfor %}"
_CHATML_TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
# Formats without a system role put the system text in front of the first user text.
_MERGE = (
    "{% set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' else '' %}"
    "{% set rest = messages[1:] if system else messages %}"
)
_MISTRAL = (
    _MERGE
    + "{{ bos_token }}{% for m in rest %}{% if m['role'] == 'user' %}{{ 'OPEN' + (system + '\\n\\n' if loop.first and "
    "system else '') + m['content'] + 'CLOSE' }}{% else %}{{ 'BEFORE' + m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)


def _mistral(start: str, end: str, before: str) -> str:
    return _MISTRAL.replace("OPEN", start).replace("CLOSE", end).replace("BEFORE", before)


def _plain(turn: str, answer: str, before: str = "") -> str:
    """A format that writes every message the same way and opens the answer."""
    return before + _ROLES + turn + _END + "{% if add_generation_prompt %}{{ '" + answer + "' }}{% endif %}"


TEMPLATES = {
    "chatml": _plain(_CHATML_TURN, "<|im_start|>assistant\\n"),
    "llama2": (
        _MERGE + "{% for m in rest %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + ('<<SYS>>\\n' + system + "
        "'\\n<</SYS>>\\n\\n' if loop.first and system else '') + m['content'] + ' [/INST]' }}{% else %}"
        "{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3": _plain(
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}",
        "<|start_header_id|>assistant<|end_header_id|>\\n\\n",
        "{{ bos_token }}",
    ),
    "gemma": (
        _MERGE + "{{ bos_token }}{% for m in rest %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else "
        "m['role']) + '\\n' + (system + '\\n\\n' if loop.first and system else '') + m['content'] | trim + "
        "'<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    "mistral-v1": _mistral(" [INST] ", " [/INST]", " "),
    "mistral-v3": _mistral("[INST] ", "[/INST]", " "),
    "mistral-v7": _plain(
        "{% if m['role'] == 'system' %}{{ '[SYSTEM_PROMPT] ' + m['content'] + '[/SYSTEM_PROMPT]' }}"
        "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}",
        "",
        "{{ bos_token }}",
    ),
    "phi3": _plain("{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}", "<|assistant|>\\n"),
    "phi4": _plain(
        "{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}",
        "<|im_start|>assistant<|im_sep|>",
    ),
    "zephyr": _plain("{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|endoftext|>\\n' }}", "<|assistant|>\\n"),
    "vicuna": _plain(
        "{% if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}{% elif m['role'] == 'user' %}"
        "{{ 'USER: ' + m['content'] + '\\n' }}{% else %}{{ 'ASSISTANT: ' + m['content'] + '</s>\\n' }}{% endif %}",
        "ASSISTANT:",
    ),
    "deepseek": _plain(
        "{% if m['role'] == 'system' %}{{ m['content'] }}{% elif m['role'] == 'user' %}"
        "{{ '### Instruction:\\n' + m['content'] + '\\n' }}{% else %}"
        "{{ '### Response:\\n' + m['content'] + '\\n<|EOT|>\\n' }}{% endif %}",
        "### Response:\\n",
    ),
    "deepseek2": _plain(
        "{% if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}{% elif m['role'] == 'user' %}"
        "{{ 'User: ' + m['content'] + '\\n\\n' }}{% else %}{{ 'Assistant: ' + m['content'] + eos_token }}{% endif %}",
        "Assistant:",
        "{{ bos_token }}",
    ),
    "deepseek3": _plain(
        "{% if m['role'] == 'system' %}{{ m['content'] + '\\n\\n' }}{% elif m['role'] == 'user' %}"
        "{{ '<\uff5cUser\uff5c>' + m['content'] }}{% else %}{{ '<\uff5cAssistant\uff5c>' + m['content'] + eos_token }}"
        "{% endif %}",
        "<\uff5cAssistant\uff5c>",
        "{{ bos_token }}",
    ),
    "command-r": _plain(
        "{{ '<|START_OF_TURN_TOKEN|>' + {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>'}.get(m['role'], "
        "'<|CHATBOT_TOKEN|>') + m['content'] | trim + '<|END_OF_TURN_TOKEN|>' }}",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "{{ bos_token }}",
    ),
}
SPELLINGS = {"gemma2": "gemma", "gemma3": "gemma", "mistral": "mistral-v3", "mistral-v3-tekken": "mistral-v3"}
