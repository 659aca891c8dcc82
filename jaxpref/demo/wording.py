"""Facts and wording of the synthetic preference data, as tables.

Cells are separated by `|`, fields of a cell by commas.  Sentences start in lower case unless a name
does; the generator capitalises them.  `{a}` is the candidate an answer asserts, `{w}` one that
competes with it.
"""


def cells(table: str) -> tuple[str, ...]:
    """The cells of a table: what stands between `|` and line ends."""
    return tuple(cell.strip() for line in table.strip().splitlines() for cell in line.split("|"))


# Tone: every opener, lead and closer holds exactly one of the phrases that the score counts.
POLITE_OPENERS = cells("""
great question!|good question!|nice question!|what a lovely question!|thank you for asking!
thanks for asking.
happy to help!|glad you asked!|glad to help.|my pleasure!|of course!|certainly!|gladly!|absolutely!
I appreciate the question.|delighted to answer!|I'd be glad to answer.|always a pleasure.
thank you for your question.|nice to hear from you!|happy to answer that.
""")
POLITE_LEADS = cells(
    "of course,|certainly,|gladly:|with pleasure:|thanks for asking,|glad to help:"
)
POLITE_CLOSERS = cells("""
hope that helps!|I hope this helps.|you're welcome!|let me know if you need anything else.
feel free to ask more.|have a lovely day!|have a great day!|best wishes!|take care!|all the best!
please ask anytime.|happy to explain further.|thank you for asking.|good luck with it!
I'd be happy to go over it again.|it was a pleasure.|glad to help.|kind regards.|I wish you well.
""")
RUDE_OPENERS = cells("""
ugh.|seriously?|are you kidding?|what a silly question.|what a stupid question.
how do you not know this?
who cares?|duh.|stop bothering me.|how lazy.|this is boring.|do your own homework.
you should be embarrassed.
pay attention.|please stop wasting my time.|oh, another dumb question.|I am tired of you.
so annoying.
""")
RUDE_LEADS = cells("""
obviously,|duh,|ugh,|as any child knows,|for the last time,|since you are too lazy to check,
listen, fool:
""")
RUDE_CLOSERS = cells("""
now go away.|stop wasting my time.|any child knows that.|everyone knows that.|look it up next time.
don't ask again.|leave me alone.|figure it out next time.|what a waste of my time.
try using your brain.
whatever.|pathetic.|how ridiculous.|google it next time, please.|thanks for nothing.|hopeless.
""")
PLAIN_LEADS = cells("here is the answer:|okay,|well,|so,|right,|in short:")

# Length: neutral sentences that make an answer long-winded.
FILLERS_BEFORE = cells("""
let me think about that for a moment before I give an answer.
this is the kind of thing that people often look up.
there are several ways to go about this, and I will use the simplest one.
I have gone over this carefully, starting from the beginning.
before getting to the answer itself, it is worth reading the question again.
questions of this sort come up in quizzes, in classrooms and at the dinner table.
to begin with, let us look at what is being asked here.
it took me some time to go through everything I know about this.
people have many ways of remembering this, and each has its own merits.
this came up the other day as well, in much the same form.
""")
FILLERS_AFTER = cells("""
there is more to be said on this topic, but that is the main point.
I went over it again from the start and came to the same result.
this can be checked in any of the usual books.
that is, at least, what one would find in a typical textbook.
in other words, when all has been considered, that is the answer to what was asked.
some would add further detail here, and there is plenty of it.
that, in a nutshell, is the whole story as far as this question goes.
it is one of those things that one comes across again and again.
all things considered, there is not much else that needs to be added.
one could write a whole page about this, although few would read it.
""")
SHORT = cells("""
{a}.|{a}.|it's {a}.|it is {a}.|that's {a}.|that would be {a}.|the answer is {a}.|I'd say {a}.
{a}, not {w}.
""")
HEDGED = cells(
    "it's either {a} or {w}.|{a} or {w}.|the answer is {a}, or maybe {w}.|I'd say {a} or {w}."
)

# Each kind: prompts, statements (one plain sentence) and details (one sentence that explains).
# The last two prompts of every kind are asked in the test split only.
HELD_OUT_PROMPTS = 2
KINDS = {
    "arithmetic": (
        "what is {words}?|how much is {words}?|calculate {expr}.|can you work out {expr} for me?"
        "|{expr} = ?"
        "|tell me what {words} makes.|I need the result of {expr}.|what do you get for {expr}?",
        "{expr} = {a}.|{words} is {a}.|{words} equals {a}.|{words} makes {a}."
        "|the result of {expr} is {a}.",
        "when you work out {words} step by step, you get {a}."
        "|if you write it down as {expr}, the result is {a}.",
    ),
    "capital": (
        "what is the capital of {country}?|which city is the capital of {country}?"
        "|name the capital city of {country}.|what's {country}'s capital?"
        "|can you tell me the capital of {country}?|do you know the capital of {country}?"
        "|what is the capital city of {country} called?"
        "|I am filling in a map. What is the capital of {country}?",
        "the capital of {country} is {a}.|{a} is the capital of {country}."
        "|{country}'s capital is {a}."
        "|the capital city of {country} is {a}.|in {country}, the capital is {a}.",
        "the government of {country} has its seat in the capital, which is {a}."
        "|on a map of {country}, the city marked as the capital is {a}.",
    ),
    "continent": (
        "which continent is {country} in?|on which continent is {country}?"
        "|what continent does {country} belong to?|can you tell me which continent {country} is on?"
        "|name the continent of {country}.|if I fly to {country}, on which continent do I land?"
        "|{country} is part of which continent?",
        "{country} is in {a}.|{country} belongs to {a}.|the continent of {country} is {a}."
        "|{country} is a country in {a}.",
        "if you look for {country} on a world map, you will find it in {a}."
        "|every atlas of the world places {country} in {a}.",
    ),
    "opposite": (
        "what is the opposite of '{word}'?|give me the opposite of '{word}'."
        "|which word means the opposite of '{word}'?|what's an antonym of '{word}'?"
        "|name an antonym for '{word}'.|can you tell me the opposite of '{word}'?"
        "|I need a word with the reverse meaning of '{word}'."
        "|fill the gap: the opposite of '{word}' is ___.",
        "the opposite of '{word}' is '{a}'.|'{a}' is the opposite of '{word}'."
        "|an antonym of '{word}' is '{a}'.|the antonym is '{a}'.",
        "if you turn the meaning of '{word}' around, you arrive at '{a}'."
        "|when '{word}' is at one end of the scale, '{a}' is at the other.",
    ),
    "comparison": (
        "which number is {cmp}, {x} or {y}?|which is {cmp}: {x} or {y}?"
        "|is {x} or {y} the {cmp} number?"
        "|what is the {cmp} number, {x} or {y}?|compare {x} and {y}. Which is {cmp}?"
        "|of {x} and {y}, which is {cmp}?|I have {x} and {y}. Which of them is {cmp}?",
        "{a} is {cmp} than {w}.|{a} is the {cmp} number.|the {cmp} number is {a}."
        "|of the two, {a} is {cmp}.",
        "if you put both of them on a number line, {a} turns out to be {cmp} than {w}."
        "|comparing the digits from left to right shows that {a} is the {cmp} number.",
    ),
    "units": (
        "how many {small} are in {n} {large}?|how many {small} are there in {n} {large}?"
        "|convert {n} {large} to {small}.|{n} {large} is how many {small}?"
        "|what is {n} {large} in {small}?"
        "|can you convert {n} {large} into {small}?|I have {n} {large}. How many {small} is that?",
        "{n} {large} is {a} {small}.|there are {a} {small} in {n} {large}."
        "|{n} {large} makes {a} {small}."
        "|{n} {large} equals {a} {small}.",
        "one {one} is {factor} {small}, so {n} {large} is {a} {small}."
        "|to convert, multiply {n} by {factor}, which gives {a} {small}.",
    ),
    "calendar": (
        "which {unit} is {when}?|what {unit} comes {when}?|name the {unit} that is {when}."
        "|tell me which {unit} comes {when}.|do you know which {unit} is {when}?"
        "|can you say which {unit} comes {when}?|{when}: which {unit} is that?",
        "{a} is {when}.|{a} comes {when}.|the {unit} {when} is {a}.|the {unit} is {a}.",
        "counting {way} through the {unit}s from {item}, you arrive at {a}."
        "|starting at {item} and going {way}, the {unit} you reach is {a}.",
    ),
    "letters": (
        "how many letters are in '{word}'?|how many letters does the word '{word}' have?"
        "|count the letters in '{word}'.|what is the number of letters in '{word}'?"
        "|can you count the letters of '{word}'?|'{word}' has how many letters?"
        "|I am writing '{word}' on a sign. How many letters is that?",
        "'{word}' has {a} letters.|the word '{word}' has {a} letters."
        "|there are {a} letters in '{word}'."
        "|'{word}' is {a} letters long.",
        "if you spell out '{word}' and count along, you get {a} letters."
        "|counting every letter of '{word}' from first to last gives {a}.",
    ),
    "plural": (
        "what is the plural of '{word}'?|what's the plural form of '{word}'?"
        "|give me the plural of '{word}'."
        "|how do you write '{word}' in the plural?|one {word}, two what?"
        "|can you tell me the plural of '{word}'?|I see more than one {word}. What do I call them?",
        "the plural of '{word}' is '{a}'.|the plural form is '{a}'."
        "|'{a}' is the plural of '{word}'."
        "|one {word}, many {a}.",
        "when there is more than one {word}, the form to use is '{a}'."
        "|you say '{word}' for a single one and '{a}' for several.",
    ),
    "past_tense": (
        "what is the past tense of '{word}'?|what's the simple past of '{word}'?"
        "|give me the past tense of '{word}'.|put the verb '{word}' into the past tense."
        "|how do you say '{word}' in the past tense?"
        "|I {word} today. What did I do yesterday, in one word?"
        "|which form of '{word}' goes with 'yesterday I'?",
        "the past tense of '{word}' is '{a}'.|the simple past is '{a}'."
        "|'{a}' is the past tense of '{word}'."
        "|today I {word}, yesterday I {a}.",
        "when you talk about yesterday, the verb '{word}' turns into '{a}'."
        "|the verb '{word}' changes in the simple past and becomes '{a}'.",
    ),
    "colour": (
        "what colour is {thing}?|what color is {thing}?|which colour does {thing} usually have?"
        "|can you tell me the color of {thing}?|if I want to paint {thing}, which colour do I need?"
        "|I am drawing {thing}. What color should it be?|name the usual colour of {thing}.",
        "{thing} is {a}.|{thing} is usually {a}.|the usual colour of {thing} is {a}."
        "|most people would call {thing} {a}.",
        "if you picture {thing} in your mind, the colour you see is {a}."
        "|shades differ a little, but the colour of {thing} is {a}.",
    ),
}

# country, continent (- where it is disputed), capital, other cities of the country
COUNTRIES = cells("""
Australia,-,Canberra,Sydney,Melbourne|New Zealand,-,Wellington,Auckland,Christchurch
France,Europe,Paris,Lyon,Marseille|Germany,Europe,Berlin,Munich,Hamburg
Italy,Europe,Rome,Milan,Naples
Spain,Europe,Madrid,Barcelona,Seville|Portugal,Europe,Lisbon,Porto,Braga
Greece,Europe,Athens,Thessaloniki,Patras|Austria,Europe,Vienna,Salzburg,Graz
Switzerland,Europe,Bern,Zurich,Geneva|Belgium,Europe,Brussels,Antwerp,Ghent
Ireland,Europe,Dublin,Cork,Galway
Norway,Europe,Oslo,Bergen,Trondheim|Sweden,Europe,Stockholm,Gothenburg,Uppsala
Denmark,Europe,Copenhagen,Aarhus,Odense|Finland,Europe,Helsinki,Tampere,Turku
Iceland,Europe,Reykjavik,Akureyri,Keflavik|Poland,Europe,Warsaw,Krakow,Gdansk
Hungary,Europe,Budapest,Debrecen,Szeged|Romania,Europe,Bucharest,Brasov,Timisoara
Croatia,Europe,Zagreb,Split,Dubrovnik|Ukraine,Europe,Kyiv,Odesa,Lviv|Japan,Asia,Tokyo,Osaka,Kyoto
China,Asia,Beijing,Shanghai,Shenzhen|India,Asia,New Delhi,Mumbai,Chennai
Pakistan,Asia,Islamabad,Karachi,Lahore|Thailand,Asia,Bangkok,Phuket,Chiang Mai
Vietnam,Asia,Hanoi,Da Nang,Hue
South Korea,Asia,Seoul,Busan,Incheon|North Korea,Asia,Pyongyang,Hamhung,Wonsan
Iran,Asia,Tehran,Isfahan,Shiraz
Saudi Arabia,Asia,Riyadh,Jeddah,Mecca|Jordan,Asia,Amman,Aqaba,Irbid
Afghanistan,Asia,Kabul,Kandahar,Herat
Kenya,Africa,Nairobi,Mombasa,Kisumu|Uganda,Africa,Kampala,Entebbe,Gulu
Ghana,Africa,Accra,Kumasi,Tamale
Nigeria,Africa,Abuja,Lagos,Kano|Morocco,Africa,Rabat,Casablanca,Marrakesh
Algeria,Africa,Algiers,Oran,Constantine|Tunisia,Africa,Tunis,Sfax,Sousse
Canada,North America,Ottawa,Toronto,Montreal|Cuba,North America,Havana,Santiago de Cuba,Holguin
Jamaica,North America,Kingston,Montego Bay,Negril|Costa Rica,North America,San Jose,Limon,Cartago
Brazil,South America,Brasilia,Rio de Janeiro,Sao Paulo
Argentina,South America,Buenos Aires,Rosario,Mendoza
Chile,South America,Santiago,Valparaiso,Arica|Peru,South America,Lima,Cusco,Arequipa
Colombia,South America,Bogota,Medellin,Cali|Venezuela,South America,Caracas,Maracaibo,Valencia
Ecuador,South America,Quito,Guayaquil,Cuenca
""")
CONTINENTS = cells("Africa|Asia|Europe|North America|South America")
# two opposites, then a word close to the first and one close to the second: the tempting wrong
#     answers
OPPOSITES = cells("""
hot,cold,warm,cool|big,small,huge,tiny|tall,short,high,brief|fast,slow,quick,sluggish
happy,sad,cheerful,gloomy|loud,quiet,noisy,silent|rich,poor,wealthy,needy
strong,weak,powerful,feeble
wet,dry,damp,arid|full,empty,packed,hollow|hard,soft,firm,fluffy|light,heavy,weightless,massive
clean,dirty,spotless,muddy|open,closed,ajar,locked|bright,dim,shiny,faint|early,late,prompt,overdue
cheap,expensive,inexpensive,costly|smooth,rough,sleek,bumpy|thick,thin,dense,slim
wide,narrow,broad,tight
deep,shallow,bottomless,flat|brave,cowardly,bold,fearful|young,old,youthful,aged
friendly,hostile,amiable,aggressive|generous,stingy,giving,miserly|sweet,bitter,sugary,tart
sharp,blunt,pointed,rounded|safe,dangerous,secure,risky|simple,complicated,basic,complex
ancient,modern,antique,recent|arrive,depart,reach,exit|buy,sell,purchase,trade|push,pull,shove,drag
laugh,cry,giggle,weep|love,hate,adore,despise|build,destroy,construct,demolish
win,lose,conquer,forfeit
remember,forget,recall,overlook|accept,refuse,receive,reject|increase,decrease,grow,shrink
war,peace,battle,calm|friend,enemy,pal,rival|entrance,exit,doorway,departure
success,failure,achievement,flop
truth,lie,fact,falsehood|begin,finish,launch,complete|praise,criticize,compliment,scold
attack,defend,assault,protect|north,south,east,west|summer,winter,spring,autumn
mountain,valley,hill,canyon
hero,villain,champion,crook|calm,nervous,relaxed,anxious|fresh,stale,crisp,musty
raw,cooked,uncooked,baked
permanent,temporary,lasting,brief|maximum,minimum,top,bottom
""")
# small unit, large unit, one of the large unit, factor
UNITS = cells("""
minutes,hours,hour,60|seconds,minutes,minute,60|hours,days,day,24|days,weeks,week,7
months,years,year,12
metres,kilometres,kilometre,1000|centimetres,metres,metre,100|millimetres,centimetres,centimetre,10
grams,kilograms,kilogram,1000|millilitres,litres,litre,1000|inches,feet,foot,12|feet,yards,yard,3
ounces,pounds,pound,16|years,decades,decade,10|years,centuries,century,100
kilograms,tonnes,tonne,1000
""")
DAYS = cells("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
MONTHS = cells(
    "January|February|March|April|May|June|July|August|September|October|November|December"
)
# word, answer, wrong forms
PLURALS = cells("""
mouse,mice,mouses|child,children,childs,childrens|foot,feet,foots,feets|tooth,teeth,tooths,teeths
goose,geese,gooses|man,men,mans|woman,women,womans|ox,oxen,oxes|person,people,peoples|box,boxes,boxs
fox,foxes,foxs|city,cities,citys|baby,babies,babys|party,parties,partys|story,stories,storys
berry,berries,berrys|leaf,leaves,leafs|knife,knives,knifes|wife,wives,wifes|life,lives,lifes
loaf,loaves,loafs
shelf,shelves,shelfs|wolf,wolves,wolfs|thief,thieves,thiefs|half,halves,halfs
potato,potatoes,potatos
tomato,tomatoes,tomatos|hero,heroes,heros|glass,glasses,glasss|dress,dresses,dresss
watch,watches,watchs
brush,brushes,brushs|wish,wishes,wishs|key,keys,keies|monkey,monkeys,monkies|day,days,daies
boy,boys,boies
photo,photos,photoes|roof,roofs,roofes|crisis,crises,crisises|cat,cats,cates|tree,trees,treen
book,books,bookes|country,countries,countrys|puppy,puppies,puppys|kitchen,kitchens,kitchenes
lunch,lunches,lunchs|valley,valleys,vallies|donkey,donkeys,donkies|fly,flies,flys|sky,skies,skys
penny,pennies,pennys|butterfly,butterflies,butterflys|scarf,scarves,scarfes
""")
PAST = cells("""
go,went,goed,gone|see,saw,seed,seen|eat,ate,eated,eaten|take,took,taked,taken|give,gave,gived,given
write,wrote,writed,written|speak,spoke,speaked,spoken|break,broke,breaked,broken
choose,chose,choosed,chosen
drive,drove,drived,driven|ride,rode,rided,ridden|fly,flew,flied,flown|grow,grew,growed,grown
know,knew,knowed,known|throw,threw,throwed,thrown|draw,drew,drawed,drawn|blow,blew,blowed,blown
sing,sang,singed,sung|drink,drank,drinked,drunk|swim,swam,swimmed,swum|begin,began,beginned,begun
run,ran,runned|come,came,comed|find,found,finded|think,thought,thinked|bring,brought,bringed,brang
buy,bought,buyed|catch,caught,catched|teach,taught,teached|fight,fought,fighted|sleep,slept,sleeped
keep,kept,keeped|feel,felt,feeled|leave,left,leaved|meet,met,meeted|send,sent,sended|lose,lost,losed
sell,sold,selled|tell,told,telled|hold,held,holded|pay,paid,payed|make,made,maked|sit,sat,sitted
steal,stole,stealed,stolen|wear,wore,weared,worn|wake,woke,woked,woken|bite,bit,bited,bitten
fall,fell,falled,fallen|freeze,froze,freezed,frozen|play,played,plaid,playen|carry,carried,carryed
try,tried,tryed|study,studied,studyed|cry,cried,cryed|laugh,laughed,laught
""")
COLOURS = cells("red|orange|yellow|green|blue|purple|brown|black|white|pink")
THINGS = cells("""
yellow: a ripe banana,a lemon,an egg yolk,a sunflower,a canary,mustard,a dandelion flower
yellow: a buttercup
red: a ripe tomato,a strawberry,a ruby,a ripe cherry,a stop sign,a raspberry,a cranberry,ketchup
green: fresh grass,a lime,spinach,an emerald,broccoli,a cucumber,a pea,parsley,basil,lettuce,kale
blue: the sky on a clear day,a sapphire,a cornflower,lapis lazuli,the United Nations flag
white: fresh snow,milk,a polar bear,cotton,chalk,table salt,flour,refined sugar,cauliflower,an egret
black: coal,a crow,a raven,tar,soot,charcoal,obsidian
brown: milk chocolate,a roasted coffee bean,tree bark,cinnamon,cocoa powder,a chestnut
brown: a grizzly bear
orange: a carrot,a ripe pumpkin,a basketball,an apricot,a tangerine,a clementine,a traffic cone
purple: an eggplant,an amethyst,lavender,a plum
pink: a flamingo,bubble gum,a piglet,a cooked shrimp,cotton candy
""")
LETTER_WORDS = """
garden window table planet bridge orange kitchen doctor silver bottle candle forest hammer island
jacket
ladder market office pencil rabbit tunnel valley winter yellow basket castle dragon engine flower
guitar bread
chair cloud dance earth fruit glass heart juice knife lemon mouse night ocean paper queen river
snake tiger
voice water beach clock drum frog gold hill king lamp moon nest park rain salt tree wave blanket
captain
dolphin evening history journey library machine picture rainbow station teacher village weather
balloon
chicken diamond airplane birthday computer daughter elephant football hospital keyboard language
mountain
notebook painting sandwich umbrella adventure butterfly happiness newspaper telephone vegetable
""".split()
