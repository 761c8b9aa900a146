"""Other names of the nouns, each no wider than its noun."""

from functools import cache

from finetune.data.stickers.vocabulary import Kind, Noun, kinds, vocabulary

SYNONYMS: dict[str, tuple[str, ...]] = {
    "dog": ("puppy", "doggy", "hound"),
    "cat": ("kitty", "kitten"),
    "pig": ("piggy", "hog"),
    "rabbit": ("bunny", "hare"),
    "horse": ("pony",),
    "panda": ("panda bear",),
    "penguin": ("pinguin",),
    "frog": ("toad",),
    "turtle": ("tortoise",),
    "bee": ("honeybee", "bumblebee"),
    "orange": ("orange fruit",),
    "burger": ("hamburger", "cheeseburger"),
    "donut": ("doughnut",),
    "cookie": ("biscuit",),
    "car": ("automobile", "auto"),
    "taxi": ("cab", "taxicab"),
    "bus": ("coach", "omnibus"),
    "truck": ("lorry",),
    "bike": ("bicycle", "cycle", "push bike"),
    "motorcycle": ("motorbike", "motor bike"),
    "train": ("railway train", "locomotive"),
    "airplane": ("plane", "aeroplane", "aircraft", "jet"),
    "sailboat": ("sailing boat", "yacht", "sail boat"),
    "house": ("home",),
    "tent": ("camping tent",),
    "sun": ("sunshine",),
    "soccer ball": ("football", "soccerball"),
    "basketball": ("basket ball",),
    "trophy": ("winner's cup", "prize cup"),
    "shirt": ("t-shirt", "tee shirt", "tshirt"),
    "glasses": ("eyeglasses", "spectacles", "specs"),
    "phone": ("mobile phone", "cell phone", "smartphone", "mobile", "cellphone", "telephone"),
    "gift": ("present", "wrapped gift", "gift box"),
    "watch": ("wristwatch", "wrist watch"),
    "eagle": ("bald eagle",),
    "chicken": ("hen",),
    "rooster": ("cockerel",),
    "crocodile": ("alligator", "croc"),
    "lizard": ("gecko",),
    "snake": ("serpent",),
    "pufferfish": ("blowfish", "puffer fish"),
    "shrimp": ("prawn",),
    "ladybug": ("ladybird", "lady bug"),
    "rhinoceros": ("rhino",),
    "grapes": ("bunch of grapes", "grape bunch"),
    "pineapple": ("pine apple",),
    "cherries": ("pair of cherries",),
    "eggplant": ("aubergine",),
    "pepper": ("bell pepper", "paprika"),
    "peanuts": ("peanut",),
    "bread": ("loaf of bread", "loaf"),
    "baguette": ("french bread", "french loaf"),
    "pancakes": ("stack of pancakes", "pancake"),
    "cheese": ("piece of cheese", "chunk of cheese"),
    "meat": ("piece of meat", "steak"),
    "bacon": ("strip of bacon",),
    "fries": ("french fries", "chips"),
    "hot dog": ("hotdog",),
    "popcorn": ("box of popcorn",),
    "rice ball": ("onigiri",),
    "spaghetti": ("pasta", "noodles"),
    "chocolate": ("chocolate bar", "bar of chocolate"),
    "candy": ("sweet", "wrapped candy"),
    "honey pot": ("pot of honey", "jar of honey", "honey jar"),
    "milk": ("glass of milk",),
    "wine": ("glass of wine", "wine glass"),
    "beer": ("mug of beer", "beer mug"),
    "cocktail": ("martini", "cocktail glass"),
    "sundae": ("ice cream", "ice cream sundae"),
    "fire truck": ("fire engine", "firetruck"),
    "police car": ("cop car", "police cruiser"),
    "scooter": ("motor scooter",),
    "helicopter": ("chopper",),
    "race car": ("racing car", "racecar", "formula one car"),
    "office building": ("office block",),
    "ferris wheel": ("big wheel",),
    "pine tree": ("fir tree", "conifer", "fir"),
    "palm tree": ("palm",),
    "seedling": ("sprout",),
    "snowflake": ("snow flake",),
    "snowman": ("snow man",),
    "fire": ("flame",),
    "drop": ("droplet", "water drop", "drop of water"),
    "microphone": ("mic",),
    "headphones": ("headset", "earphones", "pair of headphones"),
    "radio": ("radio set",),
    "eight ball": ("billiard ball", "pool ball", "8 ball"),
    "ice skate": ("skate",),
    "skis": ("pair of skis",),
    "fishing rod": ("fishing pole",),
    "jeans": ("pair of jeans", "trousers", "pants", "denims"),
    "tie": ("necktie",),
    "sunglasses": ("shades", "pair of sunglasses", "sun glasses"),
    "backpack": ("rucksack", "school bag"),
    "purse": ("handbag", "hand bag"),
    "heel": ("high heel", "high-heeled shoe"),
    "sneaker": ("running shoe", "trainer"),
    "top hat": ("tall hat",),
    "wrench": ("spanner",),
    "scissors": ("pair of scissors",),
    "flashlight": ("torch",),
    "light bulb": ("lightbulb", "bulb"),
    "camera": ("photo camera",),
    "tv": ("television", "telly", "tv set"),
    "laptop": ("notebook computer", "computer"),
    "paintbrush": ("paint brush", "brush"),
    "envelope": ("letter",),
    "box": ("cardboard box", "carton"),
    "bathtub": ("bath tub", "bath"),
    "stopwatch": ("stop watch",),
    "pill": ("capsule", "tablet"),
    "money bag": ("bag of money", "sack of money", "moneybag"),
    "credit card": ("bank card",),
    "pushpin": ("thumbtack", "push pin"),
    "paperclip": ("paper clip",),
    "shopping cart": ("shopping trolley", "trolley"),
    "gamepad": ("game controller",),
    "dice": ("die",),
}  # fmt: skip
"""Noun -> names. Wider words ("boat", "clock", "hat" where several nouns have one) are left out."""


def all_words() -> list[Noun | Kind]:
    """The kinds, then the nouns."""
    return [*kinds(), *vocabulary().values()]


@cache
def name_forms() -> dict[str, tuple[str, bool]]:
    """Every name in a template phrase -> the noun or kind that it belongs to, and whether it is a plural."""
    forms: dict[str, tuple[str, bool]] = {"object": ("object", False), "objects": ("object", True)}
    for word in all_words():
        forms[word.plural] = (word.name, True)
        forms[word.name] = (word.name, False)
    return forms


def synonyms(noun: str, plural: bool) -> tuple[str, ...]:
    """Other names of a noun; of its plural, those formed with an "s"."""
    words = SYNONYMS.get(noun, ())
    if not plural:
        return words
    simple = [word for word in words if word.isalpha() and word[-1] not in "shxy"]
    return tuple(f"{word}s" for word in simple)
