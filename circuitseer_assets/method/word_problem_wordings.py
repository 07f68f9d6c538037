"""The wordings that `word_problems` builds its texts from: data, without behaviour.

In the tables of `FAMILIES` a row is keyed by the operation its sentences ask for ("" for none),
and the last wording of a row is held out of training. `{x}` is the problem's first number, `{y}`
the sentence's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Wordings = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """The wordings of one family of problems, by operation."""

    things: Wordings
    openings: Mapping[str, Wordings]
    events: Mapping[str, Wordings]
    endings: Mapping[str, Wordings]


NAMES = (
    *("Ada", "Ben", "Carla", "Dev", "Emma", "Finn", "Grace", "Hugo"),
    *("Iris", "Jonas", "Kofi", "Lena", "Mei", "Nora", "Omar", "Rosa"),
)

FAMILIES: dict[str, Family] = {
    "shopping": Family(
        things=("apples", "lemons", "candles", "pens", "buttons"),
        openings={
            "": (
                "{name} has {x} {things} in a basket.",
                "{name} buys {x} {things}.",
                "There are {x} {things} in {name}'s cart.",
                "{name} comes home with {x} {things}.",
            ),
            "*": (
                "{name} buys {x} bags of {y} {things} each.",
                "{name} buys {x} packs with {y} {things} in each.",
                "In {name}'s cart are {x} bags with {y} {things} in each.",
            ),
            "+": (
                "{name} buys {x} {things} on Monday and {y} on Friday.",
                "{name} buys {x} big {things} and {y} small ones.",
                "{name} buys {x} red {things} and {y} green ones.",
            ),
        },
        events={
            "+": (
                "{name} buys {y} more.",
                "Then {friend} adds {y} more.",
                "{name} goes back for another {y}.",
                "{friend} buys another {y}.",
            ),
            "-": (
                "{name} takes {y} back to the shop.",
                "{y} of them are bad and thrown away.",
                "{name} gives {y} to {friend}.",
                "{name} throws {y} of them away.",
            ),
        },
        endings={
            "": (
                "How many {things} are there now?",
                "How many {things} does {name} have?",
                "How many {things} does {name} have in the end?",
            ),
            "*": (
                "Each costs {y} coins. How many coins do they cost?",
                "The price is {y} coins each. How many coins are paid?",
                "Each costs {y} coins. How many coins are paid in all?",
            ),
            "/": (
                "They go into {y} equal bags. How many are in each bag?",
                "{y} friends share them equally. How many does each get?",
                "They are put into {y} equal bags. How many does each bag hold?",
            ),
        },
    ),
    "sharing": Family(
        things=("sweets", "nuts", "cherries", "cards", "balloons"),
        openings={
            "": (
                "{name} brings {x} {things} to school.",
                "There are {x} {things} on the table.",
                "{name} has {x} {things} to share.",
                "{name} puts {x} {things} on the table.",
            ),
            "*": (
                "{name} opens {x} boxes of {y} {things} each.",
                "There are {x} bowls with {y} {things} in each.",
                "{name} brings {x} boxes with {y} {things} in each.",
            ),
            "+": (
                "{name} brings {x} {things} and {friend} brings {y}.",
                "{name} has {x} {things} and {friend} has {y}. They put them together.",
                "{name} puts down {x} {things} and {friend} puts down {y}.",
            ),
        },
        events={
            "+": (
                "{friend} brings {y} more.",
                "A teacher adds {y} more.",
                "{name} finds another {y}.",
                "{friend} adds another {y}.",
            ),
            "-": (
                "{y} of them fall down and are lost.",
                "{name} keeps {y} for later and shares the rest.",
                "{friend} takes {y} of them.",
                "{name} takes {y} away.",
            ),
        },
        endings={
            "": (
                "How many {things} are left to share?",
                "How many {things} are there now?",
                "How many {things} are there to share?",
            ),
            "/": (
                "{y} children share them equally. How many does each get?",
                "They are shared equally by {y} friends. How many does each get?",
                "{y} friends get equal shares. How many {things} are in each share?",
            ),
            "-": (
                "{y} children take one each. How many are left?",
                "They eat {y} of them. How many are left?",
                "{y} of them are eaten. How many {things} are left?",
            ),
        },
    ),
    "collecting": Family(
        things=("shells", "stamps", "stones", "coins", "stickers"),
        openings={
            "": (
                "{name} has {x} {things}.",
                "{name} keeps {x} {things} in a box.",
                "{name} has found {x} {things}.",
                "In {name}'s box there are {x} {things}.",
            ),
            "*": (
                "{name} fills {x} boxes with {y} {things} each.",
                "{name} has an album of {x} pages with {y} {things} on each.",
                "{name} keeps {y} {things} in each of {x} boxes.",
            ),
            "+": (
                "{name} has {x} old {things} and {y} new ones.",
                "{name} finds {x} {things} at the lake and {y} at the river.",
                "{name} has {x} big {things} and {y} small ones.",
            ),
        },
        events={
            "+": (
                "{name} finds {y} more.",
                "{friend} gives {name} {y} more.",
                "{name} gets {y} more as a gift.",
                "Then {name} gets another {y}.",
            ),
            "-": (
                "{name} gives {y} away.",
                "{name} loses {y} of them.",
                "{name} sells {y} of them.",
                "{y} of them are lost.",
            ),
        },
        endings={
            "": (
                "How many {things} does {name} have now?",
                "How many {things} are there?",
                "How many {things} does {name} have in the end?",
            ),
            "*": (
                "{friend} has {y} times as many. How many does {friend} have?",
                "Each is worth {y} points. How many points are they worth?",
                "{friend} owns {y} times as many {things}. How many is that?",
            ),
            "+": (
                "{friend} has {y} more than {name}. How many does {friend} have?",
                "{friend} needs {y} more than that. How many does {friend} need?",
                "{friend} has {y} more than that. How many does {friend} have?",
            ),
            "-": (
                "{friend} has {y} fewer than {name}. How many does {friend} have?",
                "{friend} needs {y} fewer than that. How many does {friend} need?",
                "{friend} has {y} fewer than that. How many does {friend} have?",
            ),
        },
    ),
    "travel": Family(
        things=("miles",),
        openings={
            "": (
                "{name} walks {x} miles.",
                "{name} rides {x} miles on a bike.",
                "A bus takes {name} {x} miles.",
                "{name} rides {x} miles on a bus.",
            ),
            "*": (
                "{name} walks {x} miles a day for {y} days.",
                "{name} drives {x} miles an hour for {y} hours.",
                "{name} rides {x} miles a day for {y} days.",
            ),
            "+": (
                "{name} rides {x} miles to town and {y} miles to the sea.",
                "{name} walks {x} miles on Monday and {y} on Friday.",
                "{name} drives {x} miles to town and {y} miles to the lake.",
            ),
        },
        events={
            "+": (
                "Then {name} walks {y} more miles.",
                "A train takes {name} {y} miles more.",
                "After lunch {name} rides another {y} miles.",
                "Then {name} drives another {y} miles.",
            ),
            "-": (
                "{y} of these miles were on the wrong road and do not count.",
                "{name} slept for {y} of these miles; count the rest.",
                "{y} of these miles do not count.",
            ),
        },
        endings={
            "": (
                "How many miles is that?",
                "How many miles count for {name}?",
                "How many miles is that for {name}?",
            ),
            "*": (
                "{friend} goes {y} times as far. How many miles is that?",
                "{name} makes this trip {y} times. How many miles is that?",
                "{friend} rides {y} times as many miles. How many does {friend} ride?",
            ),
            "/": (
                "They took {y} equal days. How many miles is one day?",
                "The way has {y} equal parts. How many miles is one part?",
                "They took {y} equal hours. How many miles is one hour?",
            ),
            "-": (
                "{friend} goes {y} miles less. How many miles is that?",
                "{friend} stops {y} miles before. How many miles does {friend} go?",
                "{friend} goes {y} fewer miles. How many miles does {friend} go?",
            ),
        },
    ),
    "baking": Family(
        things=("cookies", "rolls", "muffins", "pies", "cakes"),
        openings={
            "": (
                "{name} bakes {x} {things}.",
                "{name} makes {x} {things} for a party.",
                "There are {x} {things} in the oven.",
                "For a party {name} bakes {x} {things}.",
            ),
            "*": (
                "{name} bakes {x} trays of {y} {things} each.",
                "{name} makes {x} {things} an hour for {y} hours.",
                "{name} fills {x} trays with {y} {things} each.",
            ),
            "+": (
                "{name} bakes {x} {things} and {friend} bakes {y}.",
                "{name} makes {x} sweet {things} and {y} plain ones.",
                "{name} bakes {x} small {things} and {y} big ones.",
            ),
        },
        events={
            "+": (
                "{name} bakes {y} more.",
                "{friend} makes another {y}.",
                "Then {friend} brings {y} more.",
                "{name} makes {y} more.",
            ),
            "-": (
                "{y} of them burn and are thrown away.",
                "{friend} eats {y} of them.",
                "{name} sells {y} of them.",
                "{y} of them are eaten.",
            ),
        },
        endings={
            "": (
                "How many {things} are left?",
                "How many {things} are there now?",
                "How many {things} does {name} have now?",
            ),
            "/": (
                "They go on {y} equal plates. How many are on each plate?",
                "{y} guests share them equally. How many does each get?",
                "They are put on {y} equal plates. How many does each plate hold?",
            ),
            "*": (
                "Each sells for {y} coins. How many coins are earned?",
                "Each needs {y} eggs. How many eggs are needed?",
                "Each needs {y} cups of milk. How many cups are needed?",
            ),
        },
    ),
    "saving": Family(
        things=("coins",),
        openings={
            "": (
                "{name} has {x} coins.",
                "{name} has saved {x} coins.",
                "There are {x} coins in {name}'s purse.",
                "{name} keeps {x} coins in a purse.",
            ),
            "*": (
                "{name} saves {x} coins a week for {y} weeks.",
                "{name} earns {x} coins an hour for {y} hours.",
                "{name} saves {x} coins a day for {y} days.",
            ),
            "+": (
                "{name} has {x} coins in a purse and {y} at home.",
                "{name} earns {x} coins on Monday and {y} on Friday.",
                "{name} saves {x} coins in May and {y} in June.",
            ),
        },
        events={
            "+": (
                "{name} earns {y} more.",
                "{name} gets {y} coins from {friend}.",
                "Grandma gives {name} {y} more.",
                "{name} saves another {y} coins.",
            ),
            "-": (
                "{name} spends {y} coins on a book.",
                "{name} pays {y} coins for lunch.",
                "{name} loses {y} coins.",
                "{name} spends {y} coins on lunch.",
            ),
        },
        endings={
            "": (
                "How many coins does {name} have now?",
                "How many coins are left?",
                "How many coins does {name} have in the end?",
            ),
            "*": (
                "{friend} has {y} times as many. How many does {friend} have?",
                "The bank gives back {y} times as many. How many coins is that?",
                "{friend} has saved {y} times as many. How many coins is that?",
            ),
            "-": (
                "A game costs {y} coins. How many are left after buying it?",
                "{friend} has {y} fewer than {name}. How many does {friend} have?",
                "A book costs {y} coins. How many coins are left after buying it?",
            ),
            "/": (
                "{name} spends them over {y} equal days. How many coins a day?",
                "{name} and others, {y} in all, share them equally. How many does each get?",
                "{name} spends them over {y} equal weeks. How many coins a week?",
            ),
        },
    ),
    "reading": Family(
        things=("pages",),
        openings={
            "": (
                "{name} reads {x} pages.",
                "{name} has a book of {x} pages.",
                "{name} must read {x} pages.",
                "{name} has {x} pages to read.",
            ),
            "*": (
                "{name} reads {x} pages a day for {y} days.",
                "A book has {x} parts of {y} pages each.",
                "{name} must read {x} books of {y} pages each.",
            ),
            "+": (
                "{name} reads {x} pages on Monday and {y} on Friday.",
                "A book has {x} pages of text and {y} of pictures.",
                "{name} reads {x} pages at home and {y} at school.",
            ),
        },
        events={
            "+": (
                "A teacher adds {y} more pages.",
                "{friend} adds {y} pages of notes.",
                "Then come another {y} pages.",
                "{name} adds {y} more pages.",
            ),
            "-": (
                "{y} of these pages are empty and do not count.",
                "{name} leaves out {y} pages.",
                "{friend} takes {y} pages away.",
                "{y} of these pages are lost.",
            ),
        },
        endings={
            "": (
                "How many pages is that?",
                "How many pages count in the end?",
                "How many pages are there in the end?",
            ),
            "/": (
                "They are read in {y} equal days. How many pages a day?",
                "{y} friends share them equally. How many pages does each read?",
                "They are read in {y} equal hours. How many pages an hour?",
            ),
            "*": (
                "Each page takes {y} minutes. How many minutes is that?",
                "{friend} reads {y} times as many. How many pages is that?",
                "Each page has {y} lines. How many lines is that?",
            ),
        },
    ),
    "gardening": Family(
        things=("tulips", "roses", "beans", "plants", "trees"),
        openings={
            "": (
                "{name} plants {x} {things}.",
                "There are {x} {things} in {name}'s garden.",
                "{name} grows {x} {things}.",
                "In {name}'s garden there are {x} {things}.",
            ),
            "*": (
                "{name} plants {x} rows of {y} {things} each.",
                "There are {x} pots with {y} {things} in each.",
                "{name} fills {x} pots with {y} {things} each.",
            ),
            "+": (
                "{name} plants {x} red {things} and {y} white ones.",
                "{name} plants {x} {things} in May and {y} in June.",
                "{name} grows {x} tall {things} and {y} small ones.",
            ),
        },
        events={
            "+": (
                "{name} plants {y} more.",
                "{friend} brings another {y}.",
                "In spring {y} more come up.",
                "Then {friend} plants another {y}.",
            ),
            "-": (
                "{y} of them dry out and are lost.",
                "A goat eats {y} of them.",
                "{name} gives {y} to {friend}.",
                "{name} gives {y} of them away.",
            ),
        },
        endings={
            "": (
                "How many {things} are left?",
                "How many {things} grow there now?",
                "How many {things} are there in the end?",
            ),
            "/": (
                "They stand in {y} equal rows. How many are in each row?",
                "They go into {y} equal pots. How many are in each pot?",
                "They are put into {y} equal rows. How many does each row hold?",
            ),
            "*": (
                "Each needs {y} cups of water. How many cups are needed?",
                "Each sells for {y} coins. How many coins are earned?",
                "Each costs {y} coins. How many coins are they worth?",
            ),
        },
    ),
}

PLAIN_PLACES: dict[str, tuple[str, Wordings]] = {
    "lake": ("at the lake", ("The water was calm.", "A duck swam by.", "Boats lay in the sun.")),
    "market": ("at the market", ("The stalls were bright.", "It smelled of bread.", "A man sang.")),
    "forest": ("in the forest", ("Birds sang in the trees.", "The path was soft.", "Moss grew.")),
    "school": ("at school", ("The bell rang early.", "The room was warm.", "Chalk lay on desks.")),
    "beach": ("at the beach", ("The sand was hot.", "Gulls cried above.", "Waves came and went.")),
    "farm": ("on the farm", ("A dog barked.", "The hay was dry.", "Cows stood by the gate.")),
    "kitchen": (
        "in the kitchen",
        ("Soup was on the stove.", "The window was open.", "Tea was hot."),
    ),
    "station": ("at the station", ("A train came in.", "People waved.", "The clock was slow.")),
}
PLAIN_TIMES = ("morning", "day", "evening", "afternoon")
PLAIN_WEATHER = ("sunny", "rainy", "windy", "quiet", "cold", "warm")
PLAIN_REQUESTS = (
    "Tell of a {weather} {time} {place}.",
    "Write about {name} and a {time} {place}.",
    "What did {name} see {place} that {time}?",
    "Describe a {weather} {time} {place} with {name}.",
)
PLAIN_BEGINNINGS = (
    "It was a {weather} {time} and {name} was {place}.",
    "{name} spent a {weather} {time} {place}.",
    "On a {weather} {time} {name} walked with {friend} {place}.",
)
PLAIN_ENDINGS = (
    "Then {name} went home.",
    "{name} was happy.",
    "{name} told {friend} about it.",
    "In the end {name} and {friend} sat down to rest.",
)
