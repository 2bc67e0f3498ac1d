"""The concepts that are learned from masks.

`names` and `descriptions` are for training queries; those that begin with `val_` are kept for validation.
"""

from __future__ import annotations

from wsiseg.training.data.places import COLON_BENIGN, NORMAL_ORGANS
from wsiseg.training.data.terms import Concept, mass, plural, singular

MASKED_CONCEPTS = (
    Concept(
        key="gland",
        name="glands",
        plural=True,
        qupath_class="Gland",
        has_masks=True,
        names=plural(
            "glands", "crypts", "colon glands", "colonic crypts", "intestinal glands", "intestinal crypts",
            "colonic glands", "glandular structures", "gland profiles", "mucosal glands", "tubular glands",
            "glands and crypts", "epithelial glands", "colorectal glands", "gland tubules", "bowel glands",
            "glands of the colon", "cross-sectioned crypts", "individual glands", "epithelial structures",
        )
        + mass(
            "glandular epithelium", "gland tissue", "epithelium", "crypt epithelium", "epithelial tissue",
            "colonic epithelium", "glandular tissue", "gland epithelium", "epithelial component",
        )
        + singular("gland", "crypt", "colon gland", "colonic crypt", "glandular structure"),
        descriptions=plural(
            "rings of epithelium around a lumen", "round tubes lined by columnar cells",
            "rings of dark nuclei around a pale centre", "tubes of epithelial cells with a hollow centre",
            "structures lined by epithelium", "rounded structures with goblet cells",
            "epithelial tubes seen in cross section", "mucin producing tubules of the mucosa",
            "test-tube shaped invaginations of the mucosa", "clusters of epithelial cells around an opening",
            "circles of columnar epithelium", "structures that secrete mucus",
        ),
        val_names=plural("gland structures", "mucosal crypts", "crypt structures", "large bowel glands",
                          "colon crypts", "glandular elements", "glandular units")
        + mass("intestinal epithelium", "crypt tissue")
        + singular("intestinal gland", "intestinal crypt"),
        val_descriptions=plural(
            "tubes lined by epithelium", "rings of columnar cells around a lumen",
            "round epithelial structures with a lumen", "hollow tubules made of epithelial cells",
        ),
        also=(
            "glandular", "epithelial", "epithelia", "crypts of Lieberkühn", "crypts of Lieberkuhn",
            "Lieberkühn crypts", "Lieberkuhn crypts", "glands of Lieberkühn", "glands of Lieberkuhn",
            "colorectal crypts", "bowel crypts", "gut glands", "gut crypts", "crypts of the colon",
            "glandular component", "glandular formations", "gland-forming epithelium",
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
        has_masks=True,
        names=plural(
            "malignant glands", "cancerous glands", "cancer cells", "tumour glands", "tumor glands",
            "malignant areas", "malignant regions", "cancerous areas", "tumour regions", "tumor areas",
            "carcinoma glands", "adenocarcinoma glands", "cancer glands", "malignant cells", "tumour cells",
            "tumor cells", "invasive glands", "areas of carcinoma", "tumour nests", "cancer regions",
            "areas of cancer", "malignant structures",
        )
        + mass(
            "adenocarcinoma", "carcinoma", "cancer", "tumour", "tumor", "malignant epithelium",
            "tumour epithelium", "malignant tissue", "cancerous tissue", "tumor tissue", "malignancy",
            "invasive carcinoma", "tumour tissue", "cancerous epithelium", "carcinoma tissue",
        )
        + singular("malignant gland", "tumour region", "tumor region", "cancerous gland", "tumor area"),
        descriptions=plural(
            "irregular fused glands with atypical nuclei", "glands that look malignant",
            "areas suspicious for carcinoma", "areas suspicious for malignancy",
            "glands with invasive growth",
            "disordered crowded glands of a cancer", "areas that look like cancer",
            "regions suspicious for cancer", "glands that belong to the carcinoma",
            "areas occupied by tumour", "parts of the tissue that are cancerous",
            "cells that have turned malignant",
        ),
        val_names=plural("malignant gland structures", "cancerous regions", "tumor regions", "tumour areas",
                          "malignant glandular structures", "carcinoma areas", "cancer areas")
        + mass("tumor epithelium", "cancer tissue", "malignant glandular epithelium",
                "invasive adenocarcinoma")
        + singular("cancer region", "tumor gland"),
        val_descriptions=plural(
            "regions suspicious for malignancy", "areas that look malignant", "glands that look cancerous",
            "regions occupied by cancer",
        ),
        also=(
            "malignant", "cancerous", "tumoral", "malignancies", "invasive cancer", "colon cancer",
            "colonic cancer", "colorectal cancer", "bowel cancer", "colon carcinoma", "colonic carcinoma",
            "colorectal carcinoma", "colon adenocarcinoma", "colonic adenocarcinoma", "colorectal adenocarcinoma",
            "crc", "malignant neoplasm", "malignant crypts", "malignant epithelial cells", "cancerous cells",
            "carcinoma cells", "carcinomatous glands", "carcinomatous tissue", "adenocarcinoma cells",
            "adenocarcinoma tissue",
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
        has_masks=True,
        names=plural(
            "dysplastic glands", "dysplastic crypts", "adenomatous glands", "neoplastic precursor glands",
            "glands with dysplasia", "glands with intraepithelial neoplasia", "premalignant glands",
            "precancerous glands", "dysplastic areas", "adenomatous crypts", "crypts with dysplasia",
        )
        + mass("dysplasia", "dysplastic epithelium", "intraepithelial neoplasia", "adenoma",
                "adenomatous epithelium", "precancerous epithelium", "glandular dysplasia",
                "epithelial dysplasia")
        + singular("dysplastic gland", "dysplastic crypt"),
        descriptions=plural(
            "crowded glands with stratified nuclei but no invasion", "glands with pencil-shaped dark nuclei",
            "areas of precancerous change", "glands on the way to cancer",
        ),
        val_names=plural("precancerous crypts", "dysplastic gland structures", "areas of dysplasia")
        + mass("premalignant epithelium", "dysplastic glandular epithelium"),
        val_descriptions=plural("glands with precancerous change"),
        also=(
            "dysplastic", "adenomatous", "premalignant", "pre-malignant", "precancerous", "pre-cancerous",
            "precancer", "premalignancy", "adenomata", "adenoma glands", "adenoma tissue", "colon adenoma",
            "colonic adenoma", "colorectal adenoma", "colonic dysplasia", "colorectal dysplasia",
            "foci of dysplasia", "dysplastic foci", "dysplastic tissue", "dysplastic mucosa", "dysplastic cells",
            "dysplastic epithelial cells", "dysplastic lesion", "dysplastic epithelia", "adenomatous tissue",
            "adenomatous mucosa", "adenomatous change", "premalignant tissue", "premalignant lesion",
            "pre-malignant glands", "pre-malignant tissue", "pre-malignant epithelium", "pre-malignant lesion",
            "precancerous tissue", "precancerous cells", "precancerous lesion", "pre-cancerous glands",
            "pre-cancerous tissue", "pre-cancerous cells", "pre-cancerous lesion",
        ),
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
        has_masks=True,
        names=plural(
            "nuclei", "cell nuclei", "individual nuclei", "single nuclei", "cell nucleus outlines",
            "nuclei of the cells", "stained nuclei", "haematoxylin stained nuclei",
            "hematoxylin stained nuclei",
            "nuclear boundaries", "dark nuclei", "nuclear profiles", "nuclear contours", "visible nuclei",
            "blue nuclei", "purple nuclei", "nuclei of all cells", "all kinds of nuclei", "nuclear instances",
        )
        + mass("nuclear material", "nuclear area", "nuclear staining")
        + singular("nucleus", "cell nucleus", "individual nucleus", "single nucleus"),
        descriptions=plural(
            "dark round dots inside the cells", "dark blue bodies inside the cells",
            "round purple bodies that hold the DNA", "small dark ovals in the cells",
            "blue-purple round bodies", "dark spots stained by haematoxylin", "centres of the cells",
            "parts of the cells that contain chromatin", "dark stained cores of the cells",
            "small oval bodies stained blue", "purple dots",
        ),
        val_names=plural("cellular nuclei", "nuclear outlines", "tissue nuclei", "nuclear regions",
                          "purple stained nuclei", "nuclei in the cells")
        + singular("visible nucleus"),
        val_descriptions=plural(
            "dark purple bodies inside the cells", "round dark bodies stained by haematoxylin",
            "small round cores of the cells",
        ),
        also=(
            "cells", "single cells", "nuclear", "nucleuses", "nucleus of the cell", "nuclei of the cell",
            "cellular nucleus", "nucleated cells", "haematoxylin nuclei", "hematoxylin nuclei", "cell cores",
        ),
        absent_in=frozenset({"patch glass"}),
    ),
    Concept(
        key="necrosis",
        name="necrosis",
        plural=False,
        qupath_class="Necrosis",
        has_masks=True,
        names=mass(
            "necrosis", "necrotic tissue", "dead tissue", "necrotic debris", "dirty necrosis",
            "tumour necrosis", "tumor necrosis", "necrotic material", "luminal necrosis",
        )
        + plural("necrotic areas", "necrotic regions", "areas of necrosis", "dead areas", "necrotic cells",
                  "necrotic zones")
        + singular("necrotic area", "necrotic region"),
        descriptions=plural("areas of dead cells and debris", "areas where the tissue has died",
                             "collections of dead cells in a lumen", "dead parts of the tumour"),
        val_names=plural("regions of necrosis", "dead regions") + mass("necrotic cell debris",
                                                                          "dead tumour tissue"),
        val_descriptions=plural("regions where the cells have died"),
        also=(
            "necrotic", "necroses", "dead cells", "necrotic foci", "foci of necrosis", "zones of necrosis",
            "necrotic patches", "necrotic component", "tissue necrosis", "necrotised tissue", "necrotized tissue",
        ),
        absent_in=NORMAL_ORGANS | COLON_BENIGN | {"bone benign", "patch fat", "patch glass",
                                                  "patch lymphocytes", "patch smooth muscle"},
    ),
    Concept(
        key="stroma",
        name="stroma",
        plural=False,
        qupath_class="Stroma",
        has_masks=True,
        exhaustive=False,
        names=mass(
            "stroma", "lamina propria", "connective tissue", "stromal tissue", "interstitial tissue",
            "interglandular stroma", "supporting tissue", "tissue between the glands", "stromal compartment",
            "supporting stroma", "interstitium", "stroma between the glands",
        )
        + plural("stromal areas", "stromal regions")
        + singular("stromal area", "stromal region"),
        descriptions=mass("tissue around the glands", "everything between the crypts",
                           "tissue that surrounds the epithelium", "non-epithelial tissue",
                           "tissue outside the glands"),
        val_names=mass("stromal component", "connective tissue stroma", "tissue between the crypts"),
        val_descriptions=mass("tissue that surrounds the glands", "tissue outside the epithelium"),
        also=(
            "stromal", "stromata", "stroma tissue", "lamina propria mucosae", "inter-glandular stroma",
            "interglandular tissue", "intervening stroma", "supportive tissue", "supporting connective tissue",
            "connective tissue between the glands",
        ),
        absent_in=frozenset({"patch glass"}),
    ),
    Concept(
        key="lumen",
        name="lumens",
        plural=True,
        qupath_class="Lumen",
        has_masks=True,
        exhaustive=False,
        names=plural(
            "lumens", "lumina", "gland lumens", "glandular lumina", "crypt lumens", "gland openings",
            "lumens of the glands", "luminal spaces", "openings of the crypts", "glandular lumens",
        )
        + singular("lumen", "gland lumen", "crypt lumen", "luminal space"),
        descriptions=plural("white spaces inside the glands", "hollow centres of the glands",
                             "empty spaces in the middle of the crypts", "cavities of the glands",
                             "bright holes inside the crypts"),
        val_names=plural("gland lumina", "crypt lumina", "lumens of the crypts"),
        val_descriptions=plural("empty spaces inside the glands", "hollow centres of the crypts"),
        also=(
            "luminal", "lumen of the gland", "lumen of the glands", "lumina of the glands", "lumen spaces",
            "luminal cavities", "gland cavities", "glandular cavities", "holes in the glands",
            "spaces inside the glands",
        ),
        absent_in=frozenset({"brain", "patch glass", "patch lymphocytes"}),
    ),
    Concept(
        key="tissue",
        name="tissue",
        plural=False,
        qupath_class="Tissue",
        has_masks=True,
        names=mass(
            "tissue", "stained tissue", "all tissue", "tissue area", "whole tissue", "tissue foreground",
            "tissue section", "foreground", "specimen", "sample tissue", "tissue on the slide",
        )
        + plural("tissue regions", "tissue areas", "tissue fragments", "tissue pieces")
        + singular("tissue region", "tissue fragment"),
        descriptions=mass("everything that is stained", "everything that is not background",
                           "tissue as opposed to glass", "all stained material"),
        val_names=mass("tissue material", "stained section") + plural("stained tissue regions"),
        val_descriptions=mass("everything that is tissue", "everything but the background"),
        also=("tissue samples", "pieces of tissue", "tissue on glass", "histological tissue", "histologic tissue"),
        absent_in=frozenset({"patch glass"}),
    ),
    Concept(
        key="glass",
        name="empty background",
        plural=False,
        qupath_class="Background",
        has_masks=True,
        names=mass(
            "background", "empty background", "white background", "glass", "empty glass", "bare glass",
            "slide background", "white space", "blank space", "empty space", "unstained background",
        )
        + plural("empty areas", "white areas", "blank areas", "areas without tissue", "background regions")
        + singular("empty area", "background region", "white area"),
        descriptions=plural("areas where there is no tissue", "parts without any staining",
                             "bright regions with nothing in them"),
        val_names=mass("blank background", "empty white space") + plural("blank regions", "empty regions"),
        val_descriptions=plural("regions where there is no tissue"),
        also=(
            "blank glass", "clear glass", "empty slide", "blank slide", "empty slide background", "non-tissue",
            "tissue-free areas", "tissue-free background", "regions without tissue",
        ),
    ),
)
