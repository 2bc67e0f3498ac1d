"""Where a picture comes from, as far as that decides what it cannot hold."""

from __future__ import annotations

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
    ("crag", "colon"): "colon any",
    ("pannuke", "tissue"): "cancer any",
    ("camelyon16", "lymph node"): "lymph node",
    ("camelyon17", "lymph node"): "lymph node",
    **{("nuinsseg", organ): place for organ, place in _NUINSSEG.items()},
}
ALL_PLACES = frozenset(PLACES.values())
NORMAL_ORGANS = frozenset(_NUINSSEG.values())  # healthy tissue, stated by the source
COLON_BENIGN = frozenset({"colon normal", "colon polyp", "colon low grade"})
SQUAMOUS = ("oral", "tongue", "oesophagus", "tonsil", "epiglottis")
BONES = ("femur", "bone benign", "bone tumour")
TUMOURS = (
    "ovary cancer",
    "lymph node",
    "oral",
    "bone tumour",
    "colon cancer",
    "colon high grade",
    "colon any",
)
_OPEN = frozenset({ANYWHERE, "cancer any"})  # organ not stated: body structures are unknown there


def everywhere_but(*places: str) -> frozenset[str]:
    """Every place except these and those whose organ is not stated."""
    unknown = set(places) - ALL_PLACES
    if unknown:
        raise KeyError(f"no such place: {sorted(unknown)}")
    return ALL_PLACES - _OPEN - set(places)


def place_of(source: str, label: str) -> str:
    """The place of a picture; `ANYWHERE` for a source or label that no table here names."""
    return PLACES.get((source, label), ANYWHERE)
