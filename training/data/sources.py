"""The public sets: licence, attribution, scale and how it is known, and what separates its splits."""

from __future__ import annotations

from wsiseg.training.data.store import SourceInfo

SOURCES: dict[str, SourceInfo] = {
    info.name: info
    for info in (
        SourceInfo(
            "ebhi_seg",
            "CC BY 4.0",
            "EBHI-Seg, Shi et al. 2023, figshare 21540159",
            "estimated 1.3: labelled 400x but shrunk to 224 px; normal crypts measure 64 px (about 80 µm)",
            "by patient",
            notes="lumen, stroma, tissue and glass layers are derived from the picture and the gland mask; "
            "low- and high-grade neoplasia are never asked as malignant, neither way",
        ),
        SourceInfo(
            "nuinsseg",
            "CC BY 4.0 (unverified)",
            "NuInsSeg, Mahbod et al., Sci Data 2024",
            "nominal 0.25 of a 40x objective; nuclei measure 18-40 px",
            "by organ",
        ),
        SourceInfo(
            "dsb2018_histology",
            "CC0 1.0",
            "2018 Data Science Bowl, BBBC038",
            "estimated 0.25 by nuclei of 10-34 px; the pictures differ",
            "by image; slides are not stated",
        ),
        SourceInfo(
            "hgsc_histolytics",
            "BSD-3-Clause (repository)",
            "HautaniemiLab histolytics",
            "estimated 0.25: median nucleus 18 px with lymphocytes",
            "by field",
        ),
        SourceInfo(
            "camelyon_resampled",
            "CC0",
            "CAMELYON, resampled by sarah-antillia",
            "estimated 0.5: lymphocyte nuclei 10-12 px",
            "by image; slides are not stated",
        ),
        SourceInfo(
            "ocdc",
            "CC BY 4.0",
            "OCDC, Mendeley 9bsc36jyrt",
            "estimated 0.5: lymphocyte nuclei about 12 px",
            "one slide: training only",
        ),
        SourceInfo(
            "necrosis_sbu",
            "BSD-3-Clause (repository), TCGA",
            "Stony Brook BMI u24_lymphocyte",
            "estimated 0.5: nuclei 10-13 px",
            "one field: training only",
        ),
        SourceInfo(
            "osteosarcoma_patches",
            "CC BY 3.0",
            "TCIA Osteosarcoma",
            "estimated 0.8: tumour nuclei about 12 px after halving",
            "by case",
            notes="patch labels, no outlines",
        ),
        SourceInfo(
            "nct_crc_samples",
            "CC BY 4.0",
            "NCT-CRC-HE-100K, Zenodo 1214456",
            "stated 0.5",
            "training only",
            notes="patch labels, no outlines",
        ),
        SourceInfo(
            "glas",
            "research use only",
            "Warwick-QU, GlaS@MICCAI2015",
            "stated 0.62",
            "test only, or official, whose test images are of patients who train; these and validation apart",
            research_only=True,
            tests_trained_patients=True,
        ),
        SourceInfo(
            "monuseg",
            "CC BY-NC-SA 4.0",
            "MoNuSeg 2018",
            "nominal 0.25 of a 40x objective",
            "test only, or official with patients apart",
            research_only=True,
        ),
        SourceInfo(
            "crag",
            "research use only",
            "CRAG, Graham et al., MILD-Net 2019",
            "stated 0.55",
            "official; patients are not stated",
            research_only=True,
        ),
        SourceInfo(
            "pannuke",
            "CC BY-NC-SA 4.0",
            "PanNuke, Gamper et al. 2020",
            "stated 0.25",
            "official folds",
            research_only=True,
        ),
        SourceInfo(
            "camelyon16",
            "CC0",
            "CAMELYON16, Ehteshami Bejnordi et al., JAMA 2017",
            "stated by the slides, read at 1.0",
            "official, slides apart",
        ),
        SourceInfo(
            "camelyon17",
            "CC0",
            "CAMELYON17, Bandi et al., IEEE TMI 2019; Litjens et al., GigaScience 2018",
            "stated by the slides, read at 1.0",
            "official, patients apart",
        ),
    )
}
# those whose folders lie below one root (CAMELYON's are slides, each imported by itself)
OPEN_SETS = tuple(
    name for name, info in SOURCES.items() if not info.research_only and name not in ("camelyon16", "camelyon17")
)
