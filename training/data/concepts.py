"""What the bundled model can be asked for, and where each thing is known to be there or not to be there.

A concept is learned from masks (`CONCEPTS[key].has_masks`) or only from its absence: the model has to refuse
what a picture does not hold, so a long list of structures, and of things that no slide holds, is asked only
where the source rules it out. What a source leaves open is *unknown* and is never asked, neither way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Number = Literal["plural", "singular", "mass"]


@dataclass(frozen=True)
class Noun:
    """A noun phrase without article, and its grammatical number."""

    text: str
    number: Number


def _plural(*texts: str) -> tuple[Noun, ...]:
    return tuple(Noun(text, "plural") for text in texts)


def _singular(*texts: str) -> tuple[Noun, ...]:
    return tuple(Noun(text, "singular") for text in texts)


def _mass(*texts: str) -> tuple[Noun, ...]:
    return tuple(Noun(text, "mass") for text in texts)


# --------------------------------------------------------------------------------------------------------
# Where a picture comes from

ANYWHERE = "anything"  # tissue whose organ is not stated: nothing that a body may hold is ruled out

_NUINSSEG = {
    "human brain": "brain",
    "human cardia": "stomach",
    "human epiglottis": "epiglottis",
    "human jejunum": "jejunum",
    "human liver": "liver",
    "human lung": "lung",
    "human muscle": "muscle",
    "human oesophagus": "oesophagus",
    "human peritoneum": "peritoneum",
    "human placenta": "placenta",
    "human pylorus": "stomach",
    "human rectum": "rectum",
    "human salivory gland": "salivary gland",
    "human spleen": "spleen",
    "human testis": "testis",
    "human tongue": "tongue",
    "human tonsile": "tonsil",
    "human umbilical cord": "umbilical cord",
    "mouse fat (white and brown)_subscapula": "fat",
    "mouse femur": "femur",
    "mouse heart": "heart",
    "mouse kidney": "kidney",
    "mouse liver": "liver",
    "mouse muscle_tibia": "muscle",
    "mouse spleen": "spleen",
    "mouse thymus": "thymus",
}
# (source, label) -> the place; the label is the class, grade or organ that the source states
PLACES: dict[tuple[str, str], str] = {
    ("ebhi_seg", "normal"): "colon normal",
    ("ebhi_seg", "polyp"): "colon polyp",
    ("ebhi_seg", "low_grade_in"): "colon low grade",
    ("ebhi_seg", "high_grade_in"): "colon high grade",
    ("ebhi_seg", "adenocarcinoma"): "colon cancer",
    ("dsb2018_histology", "histology"): ANYWHERE,
    ("hgsc_histolytics", "ovary"): "ovary cancer",
    ("camelyon_resampled", "lymph node"): "lymph node",
    ("ocdc", "oral mucosa"): "oral",
    ("necrosis_sbu", "carcinoma"): "colon cancer",
    ("osteosarcoma_patches", "Non-Tumor"): "bone benign",
    ("osteosarcoma_patches", "Non-Viable-Tumor"): "bone tumour",
    ("osteosarcoma_patches", "Viable"): "bone tumour",
    ("nct_crc_samples", "ADI"): "patch fat",
    ("nct_crc_samples", "BACK"): "patch glass",
    ("nct_crc_samples", "DEB"): "patch debris",
    ("nct_crc_samples", "LYM"): "patch lymphocytes",
    ("nct_crc_samples", "MUC"): "patch mucus",
    ("nct_crc_samples", "MUS"): "patch smooth muscle",
    ("nct_crc_samples", "NORM"): "colon normal",
    ("nct_crc_samples", "STR"): "patch stroma",
    ("nct_crc_samples", "TUM"): "colon cancer",
    ("glas", "colon"): "colon any",
    ("monuseg", "tcga"): "cancer any",
    **{("nuinsseg", organ): place for organ, place in _NUINSSEG.items()},
}
ALL_PLACES = frozenset(PLACES.values())
NORMAL_ORGANS = frozenset(_NUINSSEG.values())  # healthy tissue, stated by the source
COLON_BENIGN = frozenset({"colon normal", "colon polyp", "colon low grade"})
COLON = COLON_BENIGN | {"colon high grade", "colon cancer", "colon any"}
PATCHES = frozenset(place for place in ALL_PLACES if place.startswith("patch "))
_OPEN = frozenset({ANYWHERE, "cancer any"})  # organ not stated: body structures are unknown there


def _but(*places: str) -> frozenset[str]:
    """Every place except these and those whose organ is not stated."""
    unknown = set(places) - ALL_PLACES
    if unknown:
        raise KeyError(f"no such place: {sorted(unknown)}")
    return ALL_PLACES - _OPEN - set(places)


# --------------------------------------------------------------------------------------------------------
# The concepts


@dataclass(frozen=True)
class Concept:
    """One thing that can be asked for.

    `absent_in` are the places that rule it out. `exhaustive`: an empty layer (or crop of a layer) of this
    concept means that it is not there; where False, the layer is a safe part of the truth only, and an empty
    crop says nothing.
    """

    key: str
    name: str  # as the reasoning writes it: "glands", "necrosis"
    plural: bool
    qupath_class: str
    scale: Literal["cell", "tissue"]
    names: tuple[Noun, ...]  # used in training queries
    descriptions: tuple[Noun, ...] = ()
    val_names: tuple[Noun, ...] = ()  # never used in training queries
    val_descriptions: tuple[Noun, ...] = ()
    has_masks: bool = False
    exhaustive: bool = True
    absent_in: frozenset[str] = frozenset()
    held_back: bool = False  # absent-only concepts that no training query names
    thing: bool = False  # not of a body at all


_MASKED = (
    Concept(
        key="gland",
        name="glands",
        plural=True,
        qupath_class="Gland",
        scale="tissue",
        has_masks=True,
        names=_plural(
            "glands", "crypts", "colon glands", "colonic crypts", "intestinal glands", "intestinal crypts",
            "colonic glands", "glandular structures", "gland profiles", "mucosal glands", "tubular glands",
            "glands and crypts", "epithelial glands", "colorectal glands", "gland tubules", "bowel glands",
            "glands of the colon", "cross-sectioned crypts", "individual glands", "epithelial structures",
        )
        + _mass(
            "glandular epithelium", "gland tissue", "epithelium", "crypt epithelium", "epithelial tissue",
            "colonic epithelium", "glandular tissue", "gland epithelium", "epithelial component",
        )
        + _singular("gland", "crypt", "colon gland", "colonic crypt", "glandular structure"),
        descriptions=_plural(
            "rings of epithelium around a lumen", "round tubes lined by columnar cells",
            "rings of dark nuclei around a pale centre", "tubes of epithelial cells with a hollow centre",
            "structures lined by epithelium", "rounded structures with goblet cells",
            "epithelial tubes seen in cross section", "mucin producing tubules of the mucosa",
            "test-tube shaped invaginations of the mucosa", "clusters of epithelial cells around an opening",
            "circles of columnar epithelium", "structures that secrete mucus",
        ),
        val_names=_plural("gland structures", "mucosal crypts", "crypt structures", "large bowel glands",
                          "colon crypts", "glandular elements", "glandular units")
        + _mass("intestinal epithelium", "crypt tissue")
        + _singular("intestinal gland", "intestinal crypt"),
        val_descriptions=_plural(
            "tubes lined by epithelium", "rings of columnar cells around a lumen",
            "round epithelial structures with a lumen", "hollow tubules made of epithelial cells",
        ),
        absent_in=frozenset({
            "brain", "muscle", "heart", "spleen", "thymus", "umbilical cord", "fat", "femur", "bone benign",
            "bone tumour", "patch fat", "patch glass", "patch debris", "patch lymphocytes", "patch mucus",
            "patch smooth muscle", "patch stroma",
        }),
    ),
    Concept(
        key="malignant",
        name="malignant tissue",
        plural=False,
        qupath_class="Tumor",
        scale="tissue",
        has_masks=True,
        names=_plural(
            "malignant glands", "cancerous glands", "cancer cells", "tumour glands", "tumor glands",
            "malignant areas", "malignant regions", "cancerous areas", "tumour regions", "tumor areas",
            "carcinoma glands", "adenocarcinoma glands", "cancer glands", "malignant cells", "tumour cells",
            "tumor cells", "invasive glands", "areas of carcinoma", "tumour nests", "cancer regions",
            "areas of cancer", "malignant structures",
        )
        + _mass(
            "adenocarcinoma", "carcinoma", "cancer", "tumour", "tumor", "malignant epithelium",
            "tumour epithelium", "malignant tissue", "cancerous tissue", "tumor tissue", "malignancy",
            "invasive carcinoma", "tumour tissue", "cancerous epithelium", "carcinoma tissue",
        )
        + _singular("malignant gland", "tumour region", "tumor region", "cancerous gland", "tumor area"),
        descriptions=_plural(
            "irregular fused glands with atypical nuclei", "glands that look malignant",
            "areas suspicious for carcinoma", "areas suspicious for malignancy",
            "glands with invasive growth",
            "disordered crowded glands of a cancer", "areas that look like cancer",
            "regions suspicious for cancer", "glands that belong to the carcinoma",
            "areas occupied by tumour", "parts of the tissue that are cancerous",
            "cells that have turned malignant",
        ),
        val_names=_plural("malignant gland structures", "cancerous regions", "tumor regions", "tumour areas",
                          "malignant glandular structures", "carcinoma areas", "cancer areas")
        + _mass("tumor epithelium", "cancer tissue", "malignant glandular epithelium",
                "invasive adenocarcinoma")
        + _singular("cancer region", "tumor gland"),
        val_descriptions=_plural(
            "regions suspicious for malignancy", "areas that look malignant", "glands that look cancerous",
            "regions occupied by cancer",
        ),
        absent_in=NORMAL_ORGANS | {
            "colon normal", "colon polyp", "bone benign", "patch fat", "patch glass", "patch lymphocytes",
            "patch smooth muscle",
        },
    ),
    Concept(
        key="dysplastic",
        name="dysplastic glands",
        plural=True,
        qupath_class="Dysplasia",
        scale="tissue",
        has_masks=True,
        names=_plural(
            "dysplastic glands", "dysplastic crypts", "adenomatous glands", "neoplastic precursor glands",
            "glands with dysplasia", "glands with intraepithelial neoplasia", "premalignant glands",
            "precancerous glands", "dysplastic areas", "adenomatous crypts", "crypts with dysplasia",
        )
        + _mass("dysplasia", "dysplastic epithelium", "intraepithelial neoplasia", "adenoma",
                "adenomatous epithelium", "precancerous epithelium", "glandular dysplasia",
                "epithelial dysplasia")
        + _singular("dysplastic gland", "dysplastic crypt"),
        descriptions=_plural(
            "crowded glands with stratified nuclei but no invasion", "glands with pencil-shaped dark nuclei",
            "areas of precancerous change", "glands on the way to cancer",
        ),
        val_names=_plural("precancerous crypts", "dysplastic gland structures", "areas of dysplasia")
        + _mass("premalignant epithelium", "dysplastic glandular epithelium"),
        val_descriptions=_plural("glands with precancerous change"),
        absent_in=NORMAL_ORGANS | {
            "colon normal", "colon polyp", "bone benign", "bone tumour", "patch fat", "patch glass",
            "patch lymphocytes", "patch smooth muscle",
        },
    ),
    Concept(
        key="nucleus",
        name="nuclei",
        plural=True,
        qupath_class="Nucleus",
        scale="cell",
        has_masks=True,
        names=_plural(
            "nuclei", "cell nuclei", "individual nuclei", "single nuclei", "cell nucleus outlines",
            "nuclei of the cells", "stained nuclei", "haematoxylin stained nuclei",
            "hematoxylin stained nuclei",
            "nuclear boundaries", "dark nuclei", "nuclear profiles", "nuclear contours", "visible nuclei",
            "blue nuclei", "purple nuclei", "nuclei of all cells", "all kinds of nuclei", "nuclear instances",
        )
        + _mass("nuclear material", "nuclear area", "nuclear staining")
        + _singular("nucleus", "cell nucleus", "individual nucleus", "single nucleus"),
        descriptions=_plural(
            "dark round dots inside the cells", "dark blue bodies inside the cells",
            "round purple bodies that hold the DNA", "small dark ovals in the cells",
            "blue-purple round bodies", "dark spots stained by haematoxylin", "centres of the cells",
            "parts of the cells that contain chromatin", "dark stained cores of the cells",
            "small oval bodies stained blue", "purple dots",
        ),
        val_names=_plural("cellular nuclei", "nuclear outlines", "tissue nuclei", "nuclear regions",
                          "purple stained nuclei", "nuclei in the cells")
        + _singular("visible nucleus"),
        val_descriptions=_plural(
            "dark purple bodies inside the cells", "round dark bodies stained by haematoxylin",
            "small round cores of the cells",
        ),
        absent_in=frozenset({"patch glass"}),
    ),
    Concept(
        key="necrosis",
        name="necrosis",
        plural=False,
        qupath_class="Necrosis",
        scale="tissue",
        has_masks=True,
        names=_mass(
            "necrosis", "necrotic tissue", "dead tissue", "necrotic debris", "dirty necrosis",
            "tumour necrosis", "tumor necrosis", "necrotic material", "luminal necrosis",
        )
        + _plural("necrotic areas", "necrotic regions", "areas of necrosis", "dead areas", "necrotic cells",
                  "necrotic zones")
        + _singular("necrotic area", "necrotic region"),
        descriptions=_plural("areas of dead cells and debris", "areas where the tissue has died",
                             "collections of dead cells in a lumen", "dead parts of the tumour"),
        val_names=_plural("regions of necrosis", "dead regions") + _mass("necrotic cell debris",
                                                                          "dead tumour tissue"),
        val_descriptions=_plural("regions where the cells have died"),
        absent_in=NORMAL_ORGANS | COLON_BENIGN | {"bone benign", "patch fat", "patch glass",
                                                  "patch lymphocytes", "patch smooth muscle"},
    ),
    Concept(
        key="stroma",
        name="stroma",
        plural=False,
        qupath_class="Stroma",
        scale="tissue",
        has_masks=True,
        exhaustive=False,
        names=_mass(
            "stroma", "lamina propria", "connective tissue", "stromal tissue", "interstitial tissue",
            "interglandular stroma", "supporting tissue", "tissue between the glands", "stromal compartment",
            "supporting stroma", "interstitium", "stroma between the glands",
        )
        + _plural("stromal areas", "stromal regions")
        + _singular("stromal area", "stromal region"),
        descriptions=_mass("tissue around the glands", "everything between the crypts",
                           "tissue that surrounds the epithelium", "non-epithelial tissue",
                           "tissue outside the glands"),
        val_names=_mass("stromal component", "connective tissue stroma", "tissue between the crypts"),
        val_descriptions=_mass("tissue that surrounds the glands", "tissue outside the epithelium"),
        absent_in=frozenset({"patch glass"}),
    ),
    Concept(
        key="lumen",
        name="lumens",
        plural=True,
        qupath_class="Lumen",
        scale="tissue",
        has_masks=True,
        exhaustive=False,
        names=_plural(
            "lumens", "lumina", "gland lumens", "glandular lumina", "crypt lumens", "gland openings",
            "lumens of the glands", "luminal spaces", "openings of the crypts", "glandular lumens",
        )
        + _singular("lumen", "gland lumen", "crypt lumen", "luminal space"),
        descriptions=_plural("white spaces inside the glands", "hollow centres of the glands",
                             "empty spaces in the middle of the crypts", "cavities of the glands",
                             "bright holes inside the crypts"),
        val_names=_plural("gland lumina", "crypt lumina", "lumens of the crypts"),
        val_descriptions=_plural("empty spaces inside the glands", "hollow centres of the crypts"),
        absent_in=frozenset({"brain", "patch glass", "patch lymphocytes"}),
    ),
    Concept(
        key="tissue",
        name="tissue",
        plural=False,
        qupath_class="Tissue",
        scale="tissue",
        has_masks=True,
        names=_mass(
            "tissue", "stained tissue", "all tissue", "tissue area", "whole tissue", "tissue foreground",
            "tissue section", "foreground", "specimen", "sample tissue", "tissue on the slide",
        )
        + _plural("tissue regions", "tissue areas", "tissue fragments", "tissue pieces")
        + _singular("tissue region", "tissue fragment"),
        descriptions=_mass("everything that is stained", "everything that is not background",
                           "tissue as opposed to glass", "all stained material"),
        val_names=_mass("tissue material", "stained section") + _plural("stained tissue regions"),
        val_descriptions=_mass("everything that is tissue", "everything but the background"),
        absent_in=frozenset({"patch glass"}),
    ),
    Concept(
        key="glass",
        name="empty background",
        plural=False,
        qupath_class="Background",
        scale="tissue",
        has_masks=True,
        names=_mass(
            "background", "empty background", "white background", "glass", "empty glass", "bare glass",
            "slide background", "white space", "blank space", "empty space", "unstained background",
        )
        + _plural("empty areas", "white areas", "blank areas", "areas without tissue", "background regions")
        + _singular("empty area", "background region", "white area"),
        descriptions=_plural("areas where there is no tissue", "parts without any staining",
                             "bright regions with nothing in them"),
        val_names=_mass("blank background", "empty white space") + _plural("blank regions", "empty regions"),
        val_descriptions=_plural("regions where there is no tissue"),
    ),
)

_SQUAMOUS = ("oral", "tongue", "oesophagus", "tonsil", "epiglottis")
_BONES = ("femur", "bone benign", "bone tumour")
_TUMOURS = ("ovary cancer", "lymph node", "oral", "bone tumour", "colon cancer", "colon high grade",
            "colon any")


def _absent(name: str, absent_in: frozenset[str], *others: str, singular: tuple[str, ...] = (),
            mass: bool = False, cell: bool = False, held_back: bool = False) -> Concept:
    """A structure without masks: `name` (plural unless `mass`) and other wordings of the same number."""
    make = _mass if mass else _plural
    return Concept(
        key=name.replace(" ", "_").replace("'", ""),
        name=name,
        plural=not mass,
        qupath_class=name.capitalize(),
        scale="cell" if cell else "tissue",
        names=make(name, *others) + _singular(*singular),
        absent_in=absent_in,
        held_back=held_back,
    )


_ABSENT = (
    _absent("cartilage", _but("epiglottis", "lung", "fat", "ovary cancer", *_BONES), "hyaline cartilage",
            "cartilage tissue", "cartilaginous tissue", mass=True),
    _absent("glomeruli", _but("kidney"), "renal glomeruli", "kidney glomeruli", "renal corpuscles",
            singular=("glomerulus",)),
    _absent("renal tubules", _but("kidney"), "kidney tubules", "proximal tubules", "tubules of the kidney",
            singular=("renal tubule",)),
    _absent("bone", _but("fat", "muscle", "ovary cancer", *_BONES), "bone trabeculae", "bone tissue",
            "trabecular bone", "osteoid", "cortical bone", mass=True),
    _absent("hair follicles", _but("fat", "ovary cancer"), "hair shafts", "hairs", "follicles of hair",
            singular=("hair follicle",)),
    _absent("sebaceous glands", _but("fat", "oral", "tongue", "ovary cancer", "salivary gland"),
            "skin glands", singular=("sebaceous gland",)),
    _absent("sweat glands", _but("fat", "ovary cancer", "salivary gland", "oral", "tongue", "tonsil",
                                 "oesophagus", "epiglottis"),
            "eccrine glands", "sweat ducts", singular=("sweat gland",)),
    _absent("alveoli", _but("lung"), "lung alveoli", "air sacs", "alveolar spaces", "alveolar walls",
            singular=("alveolus",)),
    _absent("bronchi", _but("lung", "epiglottis"), "bronchioles", "airways", "bronchial walls",
            singular=("bronchus",)),
    _absent("respiratory epithelium", _but("lung", "epiglottis", "oral", "tonsil"),
            "ciliated epithelium of the airways", "bronchial epithelium", mass=True),
    _absent("nerve bundles", COLON_BENIGN | {"thymus"}, "nerves", "nerve fibres", "peripheral nerves",
            "nerve fascicles", singular=("nerve bundle", "nerve")),
    _absent("adipose tissue", COLON_BENIGN | {"brain", "umbilical cord", "placenta", "testis", "patch glass",
                                             "patch lymphocytes", "patch smooth muscle"},
            "fat", "fatty tissue", "fat tissue", mass=True),
    _absent("fat cells", COLON_BENIGN | {"brain", "umbilical cord", "placenta", "testis"}, "adipocytes",
            "fat vacuoles", singular=("adipocyte", "fat cell")),
    _absent("fungi", _but("oral", "tongue", "tonsil", "oesophagus"), "fungal hyphae", "yeasts",
            "fungal spores", "candida hyphae", cell=True),
    _absent("parasites", _but("muscle"), "worms", "parasite eggs", "helminths", "amoebae",
            singular=("parasite",)),
    _absent("calcification", COLON_BENIGN | {"muscle", "liver", "tongue", "patch lymphocytes"},
            "calcium deposits", "calcified material", mass=True),
    _absent("psammoma bodies", _but("ovary cancer", "brain", "placenta"), "laminated calcifications",
            singular=("psammoma body",)),
    _absent("foreign body giant cells", COLON_BENIGN | {"muscle", "liver", "kidney", "brain", "heart",
                                                       "tongue", "umbilical cord", "salivary gland"},
            "multinucleated giant cells", "giant cells", singular=("giant cell",)),
    _absent("granulomas", COLON_BENIGN | {"muscle", "kidney", "brain", "heart", "tongue", "testis",
                                         "umbilical cord", "salivary gland", "placenta"},
            "epithelioid granulomas", "caseating granulomas", singular=("granuloma",)),
    _absent("melanoma", _but("ovary cancer"), "malignant melanoma", "melanoma cells", "melanocytic tumour",
            mass=True),
    _absent("glioma", _but(*_TUMOURS), "glioblastoma", "brain tumour", "astrocytoma", mass=True),
    _absent("thyroid follicles", _but("ovary cancer"), "thyroid tissue follicles", "colloid follicles",
            singular=("thyroid follicle",)),
    _absent("neurons", frozenset({"liver", "spleen", "kidney", "lymph node", "placenta", "umbilical cord",
                                  "thymus", "muscle", "femur", "patch lymphocytes"}) | COLON_BENIGN,
            "nerve cells", "ganglion cells", "brain cells", singular=("neuron", "ganglion cell"), cell=True),
    _absent("glial cells", _but("brain", "colon cancer", "colon any", "colon high grade"), "astrocytes",
            "oligodendrocytes", cell=True),
    _absent("keratin pearls", _but("thymus", "ovary cancer", *_SQUAMOUS), "keratin whorls",
            "squamous pearls", singular=("keratin pearl",)),
    _absent("squamous epithelium", COLON_BENIGN | {"brain", "muscle", "heart", "kidney", "liver", "spleen",
                                                  "placenta", "fat", "testis", "femur", "lymph node"},
            "stratified squamous epithelium", "keratinised epithelium", "epidermis", "skin surface",
            mass=True),
    _absent("seminiferous tubules", _but("testis"), "testicular tubules", "sperm producing tubules",
            singular=("seminiferous tubule",)),
    _absent("sperm cells", _but("testis"), "spermatozoa", "spermatids", cell=True),
    _absent("hepatocytes", _but("liver"), "liver cells", "hepatocyte plates", "liver cell cords",
            singular=("hepatocyte",), cell=True),
    _absent("portal triads", _but("liver"), "portal tracts", "bile ducts of the liver",
            singular=("portal tract",)),
    _absent("heart muscle", _but("heart", "muscle"), "cardiac muscle", "myocardium",
            "cardiac muscle tissue", mass=True),
    _absent("skeletal muscle", _but("muscle", "tongue", "oesophagus", "epiglottis", "heart", "fat", "oral",
                                    "tonsil", "salivary gland", *_BONES),
            "striated muscle", "skeletal muscle tissue", mass=True),
    _absent("chorionic villi", _but("placenta"), "placental villi", "trophoblast villi",
            singular=("chorionic villus",)),
    _absent("ovarian follicles", _but("ovary cancer"), "oocytes", "graafian follicles",
            singular=("ovarian follicle", "oocyte")),
    _absent("prostate glands", _but("ovary cancer"), "prostatic glands", "prostatic acini",
            singular=("prostatic gland",)),
    _absent("mammary ducts", _but("lymph node", "ovary cancer", "salivary gland", "oral"), "breast ducts",
            "breast lobules", "lactiferous ducts", singular=("mammary duct",)),
    _absent("pancreatic islets", _but("ovary cancer"), "islets of Langerhans", "endocrine islets",
            singular=("pancreatic islet",)),
    _absent("white pulp", _but("spleen", "thymus", "lymph node", "tonsil", "patch lymphocytes"),
            "splenic white pulp", "periarteriolar lymphoid sheath", mass=True),
    _absent("Hassall corpuscles", _but("thymus", "tonsil", "oral", "ovary cancer"), "thymic corpuscles",
            singular=("Hassall corpuscle",)),
    _absent("megakaryocytes", _but("femur", "spleen", "lung", "liver", "lymph node", "ovary cancer", "thymus",
                                   "bone benign", "bone tumour"), "bone marrow giant cells",
            singular=("megakaryocyte",), cell=True),
    _absent("bone marrow", _but("fat", *_BONES), "haematopoietic marrow", "marrow tissue", mass=True),
    _absent("tooth enamel", _but("oral", "ovary cancer"), "dentin", "dental tissue", mass=True),
    _absent("retina", _but("ovary cancer"), "retinal layers", "photoreceptor layer", mass=True),
    _absent("Purkinje cells", _but("brain", "ovary cancer"), "cerebellar neurons",
            singular=("Purkinje cell",), cell=True),
    _absent("urothelium", _but("kidney"), "transitional epithelium", "bladder epithelium",
            "bladder lining", mass=True),
    _absent("endometrial glands", _but("placenta", "ovary cancer"), "glands of the uterus",
            "uterine glands", singular=("endometrial gland",)),
    _absent("adrenal cortex", _but("ovary cancer"), "adrenal gland tissue", "zona fasciculata", mass=True),
    _absent("asbestos bodies", _but("lung"), "ferruginous bodies", singular=("asbestos body",), cell=True),
    _absent("tendon", _but("muscle", "fat", "tongue", "heart", *_BONES), "tendon tissue", "ligament",
            mass=True),
    # asked in validation only: words that no training query holds
    _absent("cochlea", _but("ovary cancer"), "inner ear", "organ of Corti", mass=True, held_back=True),
    _absent("lens fibres", _but(), "eye lens", singular=("lens fibre",), held_back=True),
    _absent("Leydig cells", _but("testis", "ovary cancer"), "testicular interstitial cells", cell=True,
            held_back=True),
    _absent("pituitary gland", _but(), "adenohypophysis", "pituitary tissue", mass=True, held_back=True),
    _absent("taste buds", _but("oral", "tongue", "epiglottis", "oesophagus", "tonsil"), "gustatory buds",
            held_back=True),
    _absent("nail bed", _but(), "nail plate", "nail tissue", mass=True, held_back=True),
    _absent("choroid plexus", _but("brain"), "ependyma", mass=True, held_back=True),
    _absent("parathyroid tissue", _but(), "chief cells of the parathyroid", mass=True, held_back=True),
    _absent("teratoma", _but("ovary cancer"), "germ cell tumour", "seminoma", mass=True, held_back=True),
)

_THINGS = """cat cats|dog dogs|car cars|truck trucks|bicycle bicycles|bus buses|train trains
airplane airplanes|boat boats|horse horses|cow cows|sheep sheep|bird birds|fish fish|elephant elephants|mouse mice|spider spiders
tree trees|flower flowers|mountain mountains|river rivers|beach beaches|road roads|house houses|bridge bridges
window windows|door doors|chair chairs|table tables|sofa sofas|bed beds|lamp lamps|clock clocks|book books
phone phones|laptop laptops|computer computers|keyboard keyboards|television televisions|camera cameras
person people|child children|man men|woman women|human face faces|hand hands|hat hats|shoe shoes
banana bananas|apple apples|orange oranges|pizza pizzas|sandwich sandwiches|cake cakes|bottle bottles|cup cups
football footballs|kite kites|umbrella umbrellas|traffic light traffic lights|street sign street signs
number plate number plates|letter letters|barcode barcodes|scale bar scale bars|ruler rulers|coin coins
planet planets|star stars|cloud clouds|robot robots|guitar guitars|piano pianos|castle castles|ship ships
dragon dragons|unicorn unicorns|potato potatoes|carrot carrots|toy toys|key keys|knife knives|spoon spoons"""
_HELD_BACK_THINGS = """giraffe giraffes|motorcycle motorcycles|helicopter helicopters|snowman snowmen
tiger tigers|penguin penguins|building buildings|skateboard skateboards|watermelon watermelons
teapot teapots|scissors scissors|backpack backpacks|violin violins|lighthouse lighthouses|zebra zebras
tractor tractors|butterfly butterflies|refrigerator refrigerators|sunflower sunflowers|volcano volcanoes"""


def _things(table: str, held_back: bool) -> tuple[Concept, ...]:
    found = []
    for entry in table.replace("\n", "|").split("|"):
        words = entry.split()
        half = len(words) // 2 if len(words) % 2 == 0 else len(words) - 1
        singular, plural = " ".join(words[:half]), " ".join(words[half:])
        names = _plural(plural) + (_singular(singular) if singular != plural else ())
        found.append(
            Concept(key=singular.replace(" ", "_"), name=plural, plural=True, qupath_class=plural.capitalize(),
                    scale="tissue", names=names, absent_in=ALL_PLACES, held_back=held_back, thing=True)
        )
    return tuple(found)


CONCEPTS: dict[str, Concept] = {
    concept.key: concept
    for concept in (*_MASKED, *_ABSENT, *_things(_THINGS, False), *_things(_HELD_BACK_THINGS, True))
}
MASKED: tuple[str, ...] = tuple(key for key, concept in CONCEPTS.items() if concept.has_masks)


def place_of(source: str, label: str) -> str:
    """The place of a picture; `ANYWHERE` for a source or label that no table here names."""
    return PLACES.get((source, label), ANYWHERE)


def known_absent(source: str, label: str, *, split: str = "val") -> tuple[str, ...]:
    """Keys of all concepts that `source` rules out for its class, grade or organ `label`.

    With `split="train"` without those that are held back for validation. Concepts that are neither here nor
    among a picture's layers are unknown: never ask them.
    """
    place = place_of(source, label)
    return tuple(
        key
        for key, concept in CONCEPTS.items()
        if place in concept.absent_in and not (split == "train" and concept.held_back)
    )
