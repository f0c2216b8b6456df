"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

DEFAULT_MODEL = "smollm2-135m-instruct"

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A folder, a .gguf file, a hub id (org/name) or a short name."),
]
Threads = Annotated[int | None, typer.Option(help="Threads to use. [default: all]", min=1, metavar="N")]
Dtype = Annotated[str, typer.Option(help="What weights are kept in: auto, float32, bfloat16, int8 or int4.")]
KvCacheDtype = Annotated[
    str, typer.Option(help="What keys and values are kept in: auto, float32, bfloat16 or int8.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
Stats = Annotated[bool, typer.Option("--stats", help="Report tokens and speed on standard error.")]

SEARCH, SAMPLING, PENALTIES = "Search", "Sampling", "Penalties"
MaxNewTokens = Annotated[int | None, typer.Option(help="Tokens to generate at most.", min=1, metavar="N")]
MinNewTokens = Annotated[int | None, typer.Option(help="Tokens to generate at least.", min=0, metavar="N")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be given several times.")
]
NumReturnSequences = Annotated[
    int | None, typer.Option(help="Continuations to print.", min=1, metavar="N", rich_help_panel=SEARCH)
]
NumBeams = Annotated[
    int | None, typer.Option(help="Beams of a beam search.", min=1, metavar="N", rich_help_panel=SEARCH)
]
NumBeamGroups = Annotated[
    int | None, typer.Option(help="Groups of diverse beams.", min=1, metavar="N", rich_help_panel=SEARCH)
]
DiversityPenalty = Annotated[
    float | None, typer.Option(help="What groups lose for agreeing.", rich_help_panel=SEARCH)
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="Exponent of the length in a beam's score.", rich_help_panel=SEARCH)
]
EarlyStopping = Annotated[
    str | None, typer.Option(help="When beams end: true, false or never.", rich_help_panel=SEARCH)
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="Sample at this temperature; 0 takes the likeliest.",
        min=0,
        metavar="X",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[int | None, typer.Option(help="Sample among the k likeliest.", rich_help_panel=SAMPLING)]
TopP = Annotated[
    float | None, typer.Option(help="Sample from this mass of probability.", rich_help_panel=SAMPLING)
]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop what is less likely than this × the likeliest.", rich_help_panel=SAMPLING),
]
TypicalP = Annotated[
    float | None, typer.Option(help="Sample from this mass of typical tokens.", rich_help_panel=SAMPLING)
]
Seed = Annotated[
    int | None, typer.Option(help="The same seed samples the same text.", rich_help_panel=SAMPLING)
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Divide the logits of tokens seen before.", rich_help_panel=PENALTIES)
]
PresencePenalty = Annotated[
    float | None, typer.Option(help="Subtract from tokens generated before.", rich_help_panel=PENALTIES)
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(help="Subtract from tokens, for each time generated.", rich_help_panel=PENALTIES),
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(
        help="Let no n-gram of this size occur twice.", min=0, metavar="N", rich_help_panel=PENALTIES
    ),
]


def chosen(**options: Any) -> dict[str, Any]:
    """The options that were given, as `Model.generate` takes them."""
    options = {name: value for name, value in options.items() if value is not None and value != []}
    if options.get("temperature") == 0:
        del options["temperature"]
        options["do_sample"] = False
    if "early_stopping" in options:
        values = {"true": True, "false": False, "never": "never"}
        if options["early_stopping"] not in values:
            raise typer.BadParameter("expected true, false or never", param_hint="--early-stopping")
        options["early_stopping"] = values[options["early_stopping"]]
    return options
