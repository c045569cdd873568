"""The 24 special tokens of Poro, in the order of their ids.

The first four have a role in every text; the two speaker tokens frame translations and conversations; the rest are
StarCoder's, which its corpus carries as literal text, so that a raw document turns them into single ids by itself.

Source: special_tokens_map.json of LumiOpen/Poro-34B; the StarCoder names are those of Li et al. 2023, arXiv:2305.06161,
appendix on the data format.
"""

UNKNOWN = "<unk>"
BEGINNING = "<s>"
END = "</s>"
"""Ends every document; the only mark between two documents of a sample."""
PADDING = "<pad>"

USER = "<|user|>"
ASSISTANT = "<|assistant|>"

FILENAME = "<filename>"
REPOSITORY = "<reponame>"

SPECIAL_TOKENS: tuple[str, ...] = (
    UNKNOWN,
    BEGINNING,
    END,
    PADDING,
    USER,
    ASSISTANT,
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    FILENAME,
    "<gh_stars>",
    "<issue_start>",
    "<issue_comment>",
    "<issue_closed>",
    "<jupyter_start>",
    "<jupyter_text>",
    "<jupyter_code>",
    "<jupyter_output>",
    "<empty_output>",
    "<commit_before>",
    "<commit_msg>",
    "<commit_after>",
    REPOSITORY,
)
"""Position is id: ``SPECIAL_TOKENS[2]`` is the end of a document."""
