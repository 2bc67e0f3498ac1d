"""What the model learns to refuse: structures of other organs, and things that no slide holds."""

from __future__ import annotations

from wsiseg.training.data.places import ALL_PLACES, BONES, COLON_BENIGN, SQUAMOUS, TUMOURS, everywhere_but
from wsiseg.training.data.terms import Concept, mass, plural, singular


def _absent(name: str, absent_in: frozenset[str], *others: str, one: tuple[str, ...] = (),
            uncountable: bool = False, held_back: bool = False) -> Concept:
    """A structure without masks: `name` (plural unless `uncountable`) and others of the same number."""
    make = mass if uncountable else plural
    return Concept(
        key=name.replace(" ", "_").replace("'", ""),
        name=name,
        plural=not uncountable,
        qupath_class=name.capitalize(),
        names=make(name, *others) + singular(*one),
        absent_in=absent_in,
        held_back=held_back,
    )


ABSENT_CONCEPTS = (
    _absent("cartilage", everywhere_but("epiglottis", "lung", "fat", "ovary cancer", *BONES),
            "hyaline cartilage",
            "cartilage tissue", "cartilaginous tissue", uncountable=True),
    _absent("glomeruli", everywhere_but("kidney"), "renal glomeruli", "kidney glomeruli", "renal corpuscles",
            one=("glomerulus",)),
    _absent("renal tubules", everywhere_but("kidney"), "kidney tubules", "proximal tubules",
            "tubules of the kidney",
            one=("renal tubule",)),
    _absent("bone", everywhere_but("fat", "muscle", "ovary cancer", *BONES), "bone trabeculae", "bone tissue",
            "trabecular bone", "osteoid", "cortical bone", uncountable=True),
    _absent("hair follicles", everywhere_but("fat", "ovary cancer"), "hair shafts", "hairs",
            "follicles of hair",
            one=("hair follicle",)),
    _absent("sebaceous glands", everywhere_but("fat", "oral", "tongue", "ovary cancer", "salivary gland"),
            "skin glands", one=("sebaceous gland",)),
    _absent("sweat glands", everywhere_but("fat", "ovary cancer", "salivary gland", "oral", "tongue",
            "tonsil",
                                 "oesophagus", "epiglottis"),
            "eccrine glands", "sweat ducts", one=("sweat gland",)),
    _absent("alveoli", everywhere_but("lung"), "lung alveoli", "air sacs", "alveolar spaces",
            "alveolar walls",
            one=("alveolus",)),
    _absent("bronchi", everywhere_but("lung", "epiglottis"), "bronchioles", "airways", "bronchial walls",
            one=("bronchus",)),
    _absent("respiratory epithelium", everywhere_but("lung", "epiglottis", "oral", "tonsil"),
            "ciliated epithelium of the airways", "bronchial epithelium", uncountable=True),
    _absent("nerve bundles", COLON_BENIGN | {"thymus"}, "nerves", "nerve fibres", "peripheral nerves",
            "nerve fascicles", one=("nerve bundle", "nerve")),
    _absent("adipose tissue", COLON_BENIGN | {"brain", "umbilical cord", "placenta", "testis", "patch glass",
                                             "patch lymphocytes", "patch smooth muscle"},
            "fat", "fatty tissue", "fat tissue", uncountable=True),
    _absent("fat cells", COLON_BENIGN | {"brain", "umbilical cord", "placenta", "testis"}, "adipocytes",
            "fat vacuoles", one=("adipocyte", "fat cell")),
    _absent("fungi", everywhere_but("oral", "tongue", "tonsil", "oesophagus"), "fungal hyphae", "yeasts",
            "fungal spores", "candida hyphae"),
    _absent("parasites", everywhere_but("muscle"), "worms", "parasite eggs", "helminths", "amoebae",
            one=("parasite",)),
    _absent("calcification", COLON_BENIGN | {"muscle", "liver", "tongue", "patch lymphocytes"},
            "calcium deposits", "calcified material", uncountable=True),
    _absent("psammoma bodies", everywhere_but("ovary cancer", "brain", "placenta"),
            "laminated calcifications",
            one=("psammoma body",)),
    _absent("foreign body giant cells", COLON_BENIGN | {"muscle", "liver", "kidney", "brain", "heart",
                                                       "tongue", "umbilical cord", "salivary gland"},
            "multinucleated giant cells", "giant cells", one=("giant cell",)),
    _absent("granulomas", COLON_BENIGN | {"muscle", "kidney", "brain", "heart", "tongue", "testis",
                                         "umbilical cord", "salivary gland", "placenta"},
            "epithelioid granulomas", "caseating granulomas", one=("granuloma",)),
    _absent("melanoma", everywhere_but("ovary cancer"), "malignant melanoma", "melanoma cells",
            "melanocytic tumour",
            uncountable=True),
    _absent("glioma", everywhere_but(*TUMOURS), "glioblastoma", "brain tumour", "astrocytoma",
            uncountable=True),
    _absent("thyroid follicles", everywhere_but("ovary cancer"), "thyroid tissue follicles",
            "colloid follicles",
            one=("thyroid follicle",)),
    _absent("neurons", frozenset({"liver", "spleen", "kidney", "lymph node", "placenta", "umbilical cord",
                                  "thymus", "muscle", "femur", "patch lymphocytes"}) | COLON_BENIGN,
            "nerve cells", "ganglion cells", "brain cells", one=("neuron", "ganglion cell")),
    _absent("glial cells", everywhere_but("brain", "colon cancer", "colon any", "colon high grade"),
            "astrocytes",
            "oligodendrocytes"),
    _absent("keratin pearls", everywhere_but("thymus", "ovary cancer", *SQUAMOUS), "keratin whorls",
            "squamous pearls", one=("keratin pearl",)),
    _absent("squamous epithelium", COLON_BENIGN | {"brain", "muscle", "heart", "kidney", "liver", "spleen",
                                                  "placenta", "fat", "testis", "femur", "lymph node"},
            "stratified squamous epithelium", "keratinised epithelium", "epidermis", "skin surface",
            uncountable=True),
    _absent("seminiferous tubules", everywhere_but("testis"), "testicular tubules", "sperm producing tubules",
            one=("seminiferous tubule",)),
    _absent("sperm cells", everywhere_but("testis"), "spermatozoa", "spermatids"),
    _absent("hepatocytes", everywhere_but("liver"), "liver cells", "hepatocyte plates", "liver cell cords",
            one=("hepatocyte",)),
    _absent("portal triads", everywhere_but("liver"), "portal tracts", "bile ducts of the liver",
            one=("portal tract",)),
    _absent("heart muscle", everywhere_but("heart", "muscle"), "cardiac muscle", "myocardium",
            "cardiac muscle tissue", uncountable=True),
    _absent("skeletal muscle", everywhere_but("muscle", "tongue", "oesophagus", "epiglottis", "heart",
            "fat", "oral",
                                    "tonsil", "salivary gland", *BONES),
            "striated muscle", "skeletal muscle tissue", uncountable=True),
    _absent("chorionic villi", everywhere_but("placenta"), "placental villi", "trophoblast villi",
            one=("chorionic villus",)),
    _absent("ovarian follicles", everywhere_but("ovary cancer"), "oocytes", "graafian follicles",
            one=("ovarian follicle", "oocyte")),
    _absent("prostate glands", everywhere_but("ovary cancer"), "prostatic glands", "prostatic acini",
            one=("prostatic gland",)),
    _absent("mammary ducts", everywhere_but("lymph node", "ovary cancer", "salivary gland", "oral"),
            "breast ducts",
            "breast lobules", "lactiferous ducts", one=("mammary duct",)),
    _absent("pancreatic islets", everywhere_but("ovary cancer"), "islets of Langerhans", "endocrine islets",
            one=("pancreatic islet",)),
    _absent("white pulp", everywhere_but("spleen", "thymus", "lymph node", "tonsil", "patch lymphocytes"),
            "splenic white pulp", "periarteriolar lymphoid sheath", uncountable=True),
    _absent("Hassall corpuscles", everywhere_but("thymus", "tonsil", "oral", "ovary cancer"),
            "thymic corpuscles",
            one=("Hassall corpuscle",)),
    _absent("megakaryocytes", everywhere_but("femur", "spleen", "lung", "liver", "lymph node",
            "ovary cancer", "thymus",
                                   "bone benign", "bone tumour"), "bone marrow giant cells",
            one=("megakaryocyte",)),
    _absent("bone marrow", everywhere_but("fat", *BONES), "haematopoietic marrow", "marrow tissue",
            uncountable=True),
    _absent("tooth enamel", everywhere_but("oral", "ovary cancer"), "dentin", "dental tissue",
            uncountable=True),
    _absent("retina", everywhere_but("ovary cancer"), "retinal layers", "photoreceptor layer",
            uncountable=True),
    _absent("Purkinje cells", everywhere_but("brain", "ovary cancer"), "cerebellar neurons",
            one=("Purkinje cell",)),
    _absent("urothelium", everywhere_but("kidney"), "transitional epithelium", "bladder epithelium",
            "bladder lining", uncountable=True),
    _absent("endometrial glands", everywhere_but("placenta", "ovary cancer"), "glands of the uterus",
            "uterine glands", one=("endometrial gland",)),
    _absent("adrenal cortex", everywhere_but("ovary cancer"), "adrenal gland tissue", "zona fasciculata",
            uncountable=True),
    _absent("asbestos bodies", everywhere_but("lung"), "ferruginous bodies", one=("asbestos body",)),
    _absent("tendon", everywhere_but("muscle", "fat", "tongue", "heart", *BONES), "tendon tissue", "ligament",
            uncountable=True),
    # asked in validation only: words that no training query holds
    _absent("cochlea", everywhere_but("ovary cancer"), "inner ear", "organ of Corti", uncountable=True,
            held_back=True),
    _absent("lens fibres", everywhere_but(), "eye lens", one=("lens fibre",), held_back=True),
    _absent("Leydig cells", everywhere_but("testis", "ovary cancer"), "testicular interstitial cells",
            held_back=True),
    _absent("pituitary gland", everywhere_but(), "adenohypophysis", "pituitary tissue", uncountable=True,
            held_back=True),
    _absent("taste buds", everywhere_but("oral", "tongue", "epiglottis", "oesophagus", "tonsil"),
            "gustatory buds",
            held_back=True),
    _absent("nail bed", everywhere_but(), "nail plate", "nail tissue", uncountable=True, held_back=True),
    _absent("choroid plexus", everywhere_but("brain"), "ependyma", uncountable=True, held_back=True),
    _absent("parathyroid tissue", everywhere_but(), "chief cells of the parathyroid", uncountable=True,
            held_back=True),
    _absent("teratoma", everywhere_but("ovary cancer"), "germ cell tumour", "seminoma", uncountable=True,
            held_back=True),
)

_THINGS = """cat cats|dog dogs|car cars|truck trucks|bicycle bicycles|bus buses|train trains
airplane airplanes|boat boats|horse horses|cow cows|sheep sheep|bird birds|fish fish
elephant elephants|mouse mice|spider spiders|tree trees|flower flowers|mountain mountains
river rivers|beach beaches|road roads|house houses|bridge bridges|window windows|door doors
chair chairs|table tables|sofa sofas|bed beds|lamp lamps|clock clocks|book books
phone phones|laptop laptops|computer computers|keyboard keyboards|television televisions
camera cameras|person people|child children|man men|woman women|human face faces|hand hands
hat hats|shoe shoes|banana bananas|apple apples|orange oranges|pizza pizzas
sandwich sandwiches|cake cakes|bottle bottles|cup cups|football footballs|kite kites
umbrella umbrellas|traffic light traffic lights|street sign street signs
number plate number plates|letter letters|barcode barcodes|scale bar scale bars|ruler rulers
coin coins|planet planets|star stars|cloud clouds|robot robots|guitar guitars|piano pianos
castle castles|ship ships|dragon dragons|unicorn unicorns|potato potatoes|carrot carrots
toy toys|key keys|knife knives|spoon spoons|pencil pencils|bag bags|basket baskets
belt belts|blanket blankets|boot boots|bowl bowls|broom brooms|bucket buckets
button buttons|cactus cacti|candle candles|cherry cherries|chicken chickens|comb combs
curtain curtains|desk desks|drum drums|duck ducks|engine engines|fence fences
fork forks|fox foxes|frog frogs|garden gardens|glove gloves|goat goats|grape grapes|hammer hammers
hotel hotels|jacket jackets|kettle kettles|ladder ladders|lemon lemons|lion lions
magnet magnets|mirror mirrors|monkey monkeys|moon moons|newspaper newspapers
oven ovens|owl owls|parrot parrots|pen pens|pig pigs|pillow pillows|pumpkin pumpkins
rabbit rabbits|radio radios|rocket rockets|roof roofs|rope ropes|satellite satellites
scarf scarves|screw screws|shark sharks|shirt shirts|snake snakes|sock socks
squirrel squirrels|suitcase suitcases|sword swords|tent tents|ticket tickets|tomato tomatoes
towel towels|trousers trousers|trumpet trumpets|turtle turtles|tyre tyres|vase vases|wallet wallets
whale whales|wheel wheels|wolf wolves|yacht yachts"""
_HELD_BACK_THINGS = """giraffe giraffes|motorcycle motorcycles|helicopter helicopters|snowman snowmen
tiger tigers|penguin penguins|building buildings|skateboard skateboards|watermelon watermelons
teapot teapots|scissors scissors|backpack backpacks|violin violins|lighthouse lighthouses
zebra zebras|tractor tractors|butterfly butterflies|refrigerator refrigerators
sunflower sunflowers|volcano volcanoes"""


def _things(table: str, held_back: bool) -> tuple[Concept, ...]:
    found = []
    for entry in table.replace("\n", "|").split("|"):
        words = entry.split()
        half = len(words) // 2 if len(words) % 2 == 0 else len(words) - 1
        one, many = " ".join(words[:half]), " ".join(words[half:])
        names = plural(many) + (singular(one) if one != many else ())
        found.append(
            Concept(key=one.replace(" ", "_"), name=many, plural=True,
                    qupath_class=many.capitalize(), names=names, absent_in=ALL_PLACES,
                    held_back=held_back, thing=True)
        )
    return tuple(found)


# What nobody can know, because the word does not exist: `queries` makes up a name each time.
NONSENSE = Concept(
    key="nonsense", name="nonsense", plural=True, qupath_class="Nonsense", names=(),
    absent_in=ALL_PLACES, thing=True,
)

THING_CONCEPTS = (*_things(_THINGS, False), *_things(_HELD_BACK_THINGS, True), NONSENSE)
