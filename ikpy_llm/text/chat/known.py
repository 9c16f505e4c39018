"""Chat templates that were looked at: publishers' own, known by a hash of their text. They run in this process."""

import hashlib

from ikpy_llm.text.chat.templates import TEMPLATES


def known(text: str) -> bool:
    """Is it one of ours, or one of those below?"""
    return text.strip() in TEMPLATES.values() or hash_of(text) in HASHES


def hash_of(text: str) -> str:
    """Half a SHA-256 of a template; blanks around it do not count."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()[:32]


HASHES = {
    "c809acafb5915672fe8db9b3970cd691",  # alpaca
    "a4002ce905c568c2890306915744fb4e",  # amberchat
    "dea688e9f24a339a0d2504f6840852ad",  # Apertus-8B-Instruct
    "86bc625842f60e1a5a8a3a9fc0dd3c97",  # Apriel-1.6-15b-Thinker-fixed
    "a30b8c4531dda19196f35fb95ab84110",  # Bielik-11B-v3.0-Instruct
    "3f9e0dc4adeb8032287d0129dc75b629",  # ByteDance-Seed-OSS
    "81a800d52014500ed43923f335cdf7a4",  # chatml
    "ceaa937bdcc6c18f7db605956e1e26f6",  # chatqa
    "d8366efb9f07c571da620ce6a924594f",  # Cohere2MoE
    "aa9ef691d4049f109496f3ce9e2bd022",  # CohereForAI-c4ai-command-r-plus-tool_use
    "cc60b553279347d83df761f5dc55b4b2",  # CohereForAI-c4ai-command-r7b-12-2024-tool_use
    "dd2675619a64a449cdcdd2b93e605a0a",  # deepseek-ai-DeepSeek-R1-Distill-Llama-8B
    "bbe594884b44d740667ee65a70bc8d33",  # deepseek-ai-DeepSeek-R1-Distill-Qwen-32B
    "d9f5f351b276cf9e81d009db08830db7",  # deepseek-ai-DeepSeek-V3.1
    "53b9683b3653cec369829a4e6b27e1be",  # deepseek-ai-DeepSeek-V3.2
    "72aab17888574619af7b460b1a46fd8d",  # deepseek-ai-DeepSeek-V4
    "2ea58abc12c20011007b1146bd46d65a",  # falcon-instruct
    "5f259f602c593bdc4ee6f461bd3d6ebb",  # fireworks-ai-llama-3-firefunction-v2
    "4756ecd3b16b636641d3d6284f5ee0ca",  # gemma-it
    "6a1015c47ccfcfa67c3b772385bccee3",  # gemma4-12B-it
    "603a42db292c25278e9b23d94c7abbe7",  # gemma4-E2B-it
    "bbbf2de800b645dfe032b1d85e1d6479",  # GigaChat3-10B-A1.8B
    "304f0d64aa3ba30ee85c281befdeb0e5",  # GigaChat3.1-10B-A1.8B
    "4a61b68faee7b95af7f57c9fe8b355f4",  # GLM-4.6
    "d63ad536c3c81880043e22ec7fd08db4",  # GLM-4.7-Flash
    "9bbf62473eb6c2e9c933ada8161d9856",  # GLM-5.2
    "ecd6ae513fe103f0eb62e8ab5bfa8d0f",  # google-gemma-2-2b-it
    "1d35a24a2a63cc600c0cab43628a6df4",  # google-gemma-4-31B-it
    "df900edd2fcee5defc268bee887666c4",  # google-gemma-4-31B-it-interleaved
    "d7f1fa46794895c5fbb06265fb87e938",  # granite-3.0-instruct
    "cbc1d50f777ec029b33f53b23d7a224c",  # HuggingFaceTB-SmolLM3-3B
    "d0657ba05651bd2134160e7a9fbe40f1",  # ibm-granite-granite-3.3-2B-Instruct
    "02e91795d2270374161c7063c9b1d084",  # Kimi-K2-Instruct
    "4027d478e682204ecc53bb42cd604023",  # Kimi-K2-Thinking
    "2294f49b51a0b9a1b0194add3f124237",  # LFM2-8B-A1B
    "f05bf4b967dc993bdc7a2fe6e43759ee",  # LFM2.5-Instruct
    "08361df082b3697050d8b96a82167be3",  # llama-2-chat
    "e64b9d1edb772d59e4cc4f692ba4a33b",  # llama-3-instruct
    "e0d5e227f0aedba8bc36d9173d4f814b",  # llama-cpp-deepseek-r1
    "e70723034f0928096207d99b2ec46789",  # llama-cpp-rwkv-world
    "2fc9dbfaea552f864b4b8cdf9d17401e",  # meetkai-functionary-medium-v3.1
    "5c7c96c27cfecf3418411d1ebd0d11d6",  # meetkai-functionary-medium-v3.2
    "93c0e9aa3629bbd77e68dbc0f5621f6e",  # meta-llama-Llama-3.1-8B-Instruct
    "d82792f95932f1c9cef5c4bd992f1712",  # meta-llama-Llama-3.2-3B-Instruct
    "78d976a442bcde2f0be15aafbb8e3050",  # microsoft-Phi-3.5-mini-instruct
    "e7fa3f870aabfc1c9cadf448926fee2b",  # MiMo-VL
    "4012f06a996cd86c6943ea93cf3d96ba",  # MiroThinker
    "66cab0fd568c720ac6e014e6f883ab4c",  # mistral-instruct
    "d990bccdaaa20611e261434bf60bce76",  # Mistral-Small-3.2-24B-Instruct-2506
    "31b50c917746ef1c2611c2fef122d3eb",  # mistralai-Ministral-3-14B-Reasoning-2512
    "e7deee034838db2bfc7487788a3013d8",  # mistralai-Mistral-Nemo-Instruct-2407
    "aab20feb9bc6881f941ea649356130ff",  # moonshotai-Kimi-K2
    "ce62e308475b364e1fc76699dccbddeb",  # NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use
    "43a92aacc2e169bb37055e4d8b0df31e",  # NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
    "a4c9919cbbd4acdd51ccffe22da04926",  # openai-gpt-oss-120b
    "b331cc81802983120d2956a9d39b3a61",  # openchat-3.5
    "fc5a9b106e9efefb9e6c403d2e92d9f1",  # phi-3
    "0834a087ccf401a67f5fe6de834ce31a",  # phi-3-small
    "55b2f4a26ac9ee719330a61a0c39d9e5",  # Qwen-Qwen2.5-7B-Instruct
    "87a2728cb8dc9fe424d624542f6060ec",  # Qwen-Qwen3-0.6B
    "2902a6768a1bc1340e851c19c4d0ef57",  # Qwen-Qwen3-Coder-30B-A3B-Instruct
    "94c6035b4f0eb905c95e2b7d8dace854",  # Qwen-QwQ-32B
    "4e9918361c284a93880606d182d64da6",  # Qwen2.5-Coder-1.5B-Instruct
    "b1d2bb00d59cae00a80c2b526765a9cc",  # qwen2.5-instruct
    "eae48a3307931acb10a6fce475a36b71",  # Qwen3-Coder
    "273d8e0e683b885071fb17e08d71e5f2",  # qwen3.5-0.8B
    "a4aee8afcf2e0711942cf848899be660",  # qwen3.5-122B-A10B
    "55d4931433fe502b794226ee7f4d206a",  # qwen3.6-35B-A3B
    "546b04dba74993efae8f9da3ba08e29f",  # Reka-Edge
    "abf1dd07919b7017c351e19d4c2803fd",  # saiga
    "872be49dbb638044ad01b60388f48d46",  # SmolLM2-135M-Instruct
    "97dd53bd17997077cedaad629d48cf19",  # solar-instruct
    "3a7cb642bf35cb4106cd3895147d8fcd",  # StepFun3.5-Flash
    "156dd2c74e961f059aca24cc7b5a34f8",  # unsloth-Apriel-1.5
    "039a4710e2aabaa79e85a233fa3daa4f",  # unsloth-mistral-Devstral-Small-2507
    "4048b56ec9ccc441161918f8c992d606",  # vicuna
    "a41f4cf24c71ac63554ca7c46efee71e",  # zephyr
}
