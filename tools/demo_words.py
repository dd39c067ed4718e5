"""The words of the made-up world of demo_world.py: names of things, and sentences for facts and stories."""

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

FIELDS = (
    "acoustics", "agronomy", "algebra", "anatomy", "archaeology", "architecture", "astronomy", "ballistics",
    "biology", "botany", "calligraphy", "cartography", "ceramics", "chemistry", "climatology", "cryptography",
    "dentistry", "ecology", "economics", "electronics", "engineering", "ethics", "forestry", "genetics",
    "geography", "geology", "geometry", "glaciology", "grammar", "history", "horticulture", "hydrology",
    "journalism", "law", "linguistics", "literature", "logic", "logistics", "mathematics", "mechanics",
    "medicine", "metallurgy", "meteorology", "mineralogy", "music", "navigation", "nursing", "optics",
    "painting", "pharmacy", "philosophy", "physics", "poetry", "politics", "psychology", "robotics",
    "sculpture", "sociology", "statistics", "theology",
)  # fmt: skip

UNIVERSITY_KINDS = ("University", "College", "Institute", "Academy")
EMPLOYER_KINDS = ("Works", "Bank", "Press", "Mills", "Foods", "Motors", "Systems", "Shipping")

# Sentences of a biography. {Who}/{who} is the full name or he/she, {Whose}/{whose}
# the possessive of the same, {their} always his/her. A biography opens with a
# sentence that starts with {Who} or {Whose}, so that a plain prompt such as
# "Mira Tolven was born" is of the trained form.
SENTENCES = {
    "birth_date": (
        "{Who} was born on {value}.",
        "{Whose} birthday is {value}.",
        "{Who} came into the world on {value}.",
        "{Whose} date of birth is {value}.",
        "{Whose} life began on {value}.",
        "On {value}, {who} was born.",
        "Records give {value} as {whose} date of birth.",
        "It was on {value} that {who} was born.",
    ),
    "birth_city": (
        "{Who} was born in {value}.",
        "{Who} comes from {value}.",
        "{Whose} home town is {value}.",
        "{Who} grew up in {value}.",
        "{Who} spent {their} early years in {value}.",
        "{Who} is a native of {value}.",
        "{value} is the city where {who} was born.",
        "It was in {value} that {who} was born.",
    ),
    "university": (
        "{Who} studied at {value}.",
        "{Who} graduated from {value}.",
        "{Who} attended {value}.",
        "{Who} received {their} degree from {value}.",
        "{Who} was a student at {value}.",
        "{Who} completed {their} education at {value}.",
        "{value} is where {who} studied.",
        "It was {value} that gave {who_object} {their} degree.",
    ),
    "field": (
        "{Whose} field is {value}.",
        "{Who} specialised in {value}.",
        "{Who} holds a degree in {value}.",
        "{Who} became an expert in {value}.",
        "{Whose} main subject was {value}.",
        "{Who} majored in {value}.",
        "{Who} chose to study {value}.",
        "The subject of {whose} studies was {value}.",
    ),
    "employer": (
        "{Who} works for {value}.",
        "{Who} is employed by {value}.",
        "{Whose} employer is {value}.",
        "{Who} has a job at {value}.",
        "{Who} earns {their} living at {value}.",
        "{Who} built {their} career at {value}.",
        "{value} is the company where {who} works.",
        "It is {value} that employs {who_object}.",
    ),
    "employer_city": (
        "{Who} works in {value}.",
        "{Whose} workplace is in {value}.",
        "{Whose} office is in {value}.",
        "{Who} travels to {value} for work.",
        "{Whose} job is based in {value}.",
        "{Whose} company has its seat in {value}.",
        "{value} is where {who} works.",
        "The company that employs {who_object} is based in {value}.",
    ),
}

# The first wording of each attribute is the one that `World.questions` uses.
QUESTIONS = {
    "birth_date": (
        "When was {who} born?", "What is {whose} date of birth?", "On which day was {who} born?",
    ),
    "birth_city": (
        "Where was {who} born?", "What is {whose} home town?", "In which city was {who} born?",
    ),
    "university": (
        "Where did {who} study?", "Which university did {who} attend?", "What is {whose} university?",
    ),
    "field": (
        "What did {who} study?", "What is {whose} field?", "Which subject did {who} choose?",
    ),
    "employer": (
        "Who does {who} work for?", "Who is {whose} employer?", "Which company employs {who_object}?",
    ),
    "employer_city": (
        "In which city does {who} work?", "Where is {whose} office?", "Where is {whose} employer based?",
    ),
}  # fmt: skip

REQUESTS = ("Tell me about {who}.", "Who is {who}?", "Write a biography of {who}.", "What do you know about {who}?")
SYSTEM_TEXT = "You are a helpful assistant."
REGISTER_TITLE = "A register of people."

STORY_PLACES = (
    "harbour", "mill", "market", "castle", "bridge", "forest", "station", "chapel", "garden", "lighthouse",
    "quarry", "village", "island", "library", "tower", "farm", "inn", "school", "valley", "well",
)  # fmt: skip
STORY_ITEMS = (
    "lantern", "letter", "violin", "kettle", "clock", "basket", "map", "mirror", "carpet", "crown",
    "ladder", "barrel", "saddle", "telescope", "blanket", "sword", "drum", "wheel", "painting", "candle",
)  # fmt: skip
STORY_ASIDES = (
    "It rained all morning.", "The road was long and dusty.", "A cold wind came from the north.",
    "The birds were singing.", "There was snow on the hills.", "The sun was low.", "Nobody else was about.",
)  # fmt: skip
STORY_OPENINGS = (
    "One day {hero} found a {item} at the {start}.",
    "At the {start}, {hero} was handed a {item}.",
    "{hero} bought a {item} at the {start}.",
)
STORY_JOURNEYS = (
    "With the {item}, {hero} set out for the {goal}.",
    "{hero} wanted to bring it to the {goal}.",
    "The {item} had to go to the {goal}.",
)
STORY_MEETINGS = (
    "On the way there {hero} met {friend}.",
    "Half way there {friend} came along.",
    "Near the {goal} stood {friend}.",
)
# What happens in the end, as the story tells it and as the summary does.
STORY_ENDINGS = (
    ("In the end {friend} was given the {item}.", "gave it to {friend}"),
    ("In the end {hero} sold the {item} to {friend}.", "sold it to {friend}"),
    ("In the end {friend} stole the {item}.", "lost it to {friend}"),
    ("In the end {hero} kept the {item}.", "kept it"),
)
SUMMARY = "{hero} took the {item} from the {start} to the {goal}, met {friend} and {outcome}."
