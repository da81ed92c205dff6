"""The words that are drawn, and those that training never shows.

The held-out lists are frozen: changing one makes every published score of the checkpoint meaningless.
"""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


# Short real words, three letters each, that training never shows.
HELD_OUT_WORDS_3: frozenset[str] = frozenset(
    listed("""
    ace aid arm bag bay bib bow bud cab cap cow cub dig dot ear elf fan fig fog fur gas gem hat hen hip hut ice ink
    jam jaw keg kit lap lid log mat mop nap net nut oak owl pad peg pie pot rag rib rod rug sap saw sea sky sob sun
    tag tap tea tin tub van vet wax web wig yak zip
    """)
)
# The same with four and five letters.
HELD_OUT_WORDS_LONG: frozenset[str] = frozenset(
    listed("""
    apple bank beach bird bread cake chair cloud coin dance desk door eagle field fish frog gate gold grape hand
    heart horse house juice jump king knife lamp leaf lemon milk moon mouse nest night ocean park piano queen rain
    river road sand ship snake snow stone swim table tent tiger train tree uncle water wheat wind wolf yard
    """)
)
# The same with six to eight, since the second edition.
HELD_OUT_WORDS_6_8: frozenset[str] = frozenset(
    listed("""
    almond anchor aquarium basket blanket bluebird bottle branch bridge cabinet calendar candle captain castle
    chimney circus compass copper cottage curtain dinosaur dolphin dragon engine fabric falcon feather football
    giraffe hammer hamster harbor hospital jacket jungle keyboard kitchen kitten ladder lantern leopard library
    magnet marble medicine mirror monkey mountain mushroom mustard needle notebook octopus painting pancake pavement
    penguin pepper pillow planet pumpkin puzzle rainbow ribbon saddle salmon sandal sandwich shelter shoulder silver
    spider stadium suitcase swimming teaspoon thunder treasure trumpet tunnel vacation vehicle violin volcano walnut
    whistle window
    """)
)
HELD_OUT_WORDS: frozenset[str] = HELD_OUT_WORDS_3 | HELD_OUT_WORDS_LONG | HELD_OUT_WORDS_6_8

# Words that training may draw besides random strings of letters.
TRAIN_WORDS: tuple[str, ...] = listed(
    """
    the and you for was are his her they one all had but not what when your can said use each which she how will
    other about out many then them these some would make like him into time has look two more write see number way
    could people than first been call who now find long down day did get come made may part over new sound take only
    little work know place year live back give most very after thing our just name good sentence man think say great
    where help much before line right too mean old any same tell boy follow came want show also around form three
    small set put end does another well large must big even such because turn here why ask went men read need land
    different home move try kind picture again change off play spell air away animal point page letter mother answer
    found study still learn should world open stop exit sale push pull menu cafe taxi bus shop free hot cold left
    close closed private danger caution warning enter no yes school hotel police fire office hello thanks welcome
    please price total sugar salt pizza soup cat dog pig bee ant bat rat car key cup pen box bed egg jar leg map toy
    hop run sit top wet red blue green black white pink gray brown orange yellow star book ball baby bear boat bell
    blog code data file java test user zone north south east west up on in at go so we me monday friday sunday june
    july april march august winter summer spring paper music radio video phone light power start level speed extra
    super magic happy lucky party round sharp fresh clean
    """
)
# Longer ones that the second edition adds.
LONGER_TRAIN_WORDS: tuple[str, ...] = listed(
    """
    above begin board break bring build cable cause cheap child class clear climb coast count cover cream cross
    crowd daily doubt draft drink early earth eight equal event every faith false fifty fight final flour focus
    force forty frame front fruit giant grade grass group guide heavy image judge label later laugh limit local
    lunch maple metal model money month movie never noise novel offer olive order owner paint panel peace piece
    pilot plain plant press prize proud quick quiet range reach ready royal salad scale scene score seven shirt
    short sight skill sleep smile smoke solid space spend spoon sport staff stage state steam store storm story
    style sweet teach thank title today touch tower track trade trust truth under union upper urban usual value
    visit voice watch waste wheel whole woman worth wrong young accept action advice afford almost annual appear
    arrive artist autumn beauty become behind better beyond bought bright broken budget button camera cannot carbon
    center choice church client coffee corner county couple course create credit custom damage dealer decide demand
    desire detail device dinner direct doctor double driver during easily editor effect eleven enough escape except
    expert family famous father figure finish flight flower forest formal friend future gather gentle global golden
    ground growth health height hidden honest income indeed inside invest junior length listen living manage market
    master matter medium member memory method middle minute mobile modern moment motion nation native nature nearby
    normal notice object online option output parent period permit person phrase player plenty pocket policy prefer
    public purple random reader recent record reduce region remain repair repeat report rescue result return review
    safety sample screen search season second secret select senior series signal simple single sister smooth social
    source square stable status strong studio supply switch symbol system talent target taught tenant thirty ticket
    toward travel twelve twenty unique useful valley victim vision volume weekly wonder worker account address
    advance against already ancient anxiety archive article attempt average balance battery bedroom believe benefit
    between brother cabbage careful central century certain channel chapter charity cleaner climate collect college
    combine comfort command company compare concept concert connect control correct council country courage culture
    current deliver deposit develop digital discuss display distant drawing dynamic economy edition element evening
    example expense explain express factory fashion feature finance forward freedom freight general genuine grocery
    habitat healthy heating history holiday however husband imagine improve include inquiry journey justice knowing
    leading lecture limited machine manager massive maximum meeting mention message million mineral minimum monthly
    morning natural network nothing nuclear obvious officer opening operate organic outside package parking partner
    passage patient pattern payment perfect phoenix plastic pointer popular pottery present problem process product
    program project promise protect provide quality quarter quickly reading receipt recover reflect regular release
    replace request require reserve respect restore revenue routine running satisfy science section serious service
    session several silence similar society special station storage student subject success suggest summary support
    surface survive teacher theatre through tonight traffic trouble typical uniform variety village visible waiting
    weather website wedding weekend western without writing absolute academic accident accurate activity actually
    addition analysis anything approach argument attorney audience bathroom birthday boundary building business
    campaign capacity category ceremony chairman chemical children circular cleaning combined complete concrete
    congress continue contract creative customer daughter decision delivery describe designer director discount
    discover distance district dividend division document download economic election employer engineer entrance
    envelope everyone evidence exercise facility familiar favorite february feedback festival findings flexible
    friendly function generate governor graduate grateful greatest guidance handling headline identity industry
    informal innocent instance interest internet investor judgment language learning lifetime likewise location
    magazine majority marriage material maximize mechanic military minister moderate moreover movement multiple
    national negative northern november numerous official opposite ordinary original overcome packages parallel
    personal physical platform pleasant position positive possible powerful practice preserve pressure previous
    princess priority probably producer progress property proposal provided purchase quantity question reaction
    recovery regional register relation relative remember republic research resource response romantic schedule
    security sequence shopping solution somebody southern specific standard strategy strength striking struggle
    suddenly superior surprise survival teaching terminal thinking thousand together tomorrow training transfer
    trillion universe valuable variable vertical weakness wireless yourself
    """
)
