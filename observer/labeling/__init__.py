"""Labels real conversations with a large model through any server that speaks OpenAI's chat API.

inputs, conversation -> prompts -> jobs -> server (or the ledger) -> answers -> votes -> rows -> outputs, or compare.
"""
