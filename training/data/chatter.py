"""Words around a question that do not change what is asked for.

People wrap a request in more ways than any list of frames holds. So that a model learns to look for the name
of a structure rather than for a known frame, some training queries surround it with everyday words in random
order, and with words that do not exist. None of these words names anything that can be asked for, and none
stands in a frame or verb that validation keeps back (a test holds both).
"""

from __future__ import annotations

import numpy as np

# requests and verbs, polite and plain
_ASKING = """
about above across act add address adjust admire advise after again against agree aid allow along also although
always among analyse analyze and another answer anybody anyone anything anywhere appear apply appreciate approach
around arrange as ask assess assign assist assume at attach attempt attend aware away back base because become
before begin behind being believe below beside best better between beyond both bound bring brief broad build but
buy by calculate call capture care carry case catch cause caution certain chance change characterise choose circle
clarify classify clear close code colour colleague collect come comment compare complete compute concentrate
concern confirm consider consult convert copy correct could course cover crop cut daily data deal decide deep
define deliver demand demonstrate describe deserve design desire detail determine diagnose did differ digital
direct discover discuss display distinguish divide do document done double down due during each early ease easy
edge edit either else emphasise employ enable end enough ensure enter entire enumerate especially establish
estimate etc evaluate even ever every evident exact examine example except exclude execute exercise exist expect
expert explain explore export express extend eye fair family far fast feel few field figure fill final fine finish
first fit fix focus follow for force form forward frame free fresh friend from full further gather general gently
gladly good got grade grateful great group guide had half handle happen happy hard has have having hello help
hence hi hint hold hope how however idea if ignore imagine immediately import important in include incorporate
inform input inspect instance instead instruct intend interest interpret into investigate involve issue it its
job judge just keep kind know large last later lay lead learn leave left less lesson light like likely limit line
list listen little load long look lot love low machine made main make manage manner many margin matter may maybe
me mean measure meet mention method might mind minute model moment more morning most move much must my name near
neat need never new next nice no none nor normal not note nothing notice now number object observe obtain obvious
of off offer often ok okay old on once one onto open or order other otherwise ought out output over overlay own
paint pair part pass patient perform perhaps person pixel place plan pleased plus point position possibly precise
prefer prepare preview previous print prior probable proceed process program project proper propose provide
publish pull purpose push put quality quantify quick quiet quite raise rapid rate rather reach read ready real
really reason recall receive recent recognise record refer refine regard register relate release relevant rely
remain remark remember remove render repeat reply report request require research resident resolve respect respond
rest result retrieve reveal review right roughly round rule run safe same sample save say scan scene score screen
search second section see seek seem seen send sense separate serve set several shade shall shape share sharp she
short should side sign similar simple simply since single sir site size sketch slow small so software solve some
somebody someone something somewhere soon sort speak special specify stage stand standard start state stay step
still stop store straight study style subject submit such suggest suitable sum supply support suppose sure survey
system take talk target task teach team tell term test thank thanks that them then there therefore these they
thing think this those though through throughout thus time to today together tomorrow too top total touch toward
training true trust turn two type under understand unless until up upload upon us usable use useful user usual
utmost value various verify version very via visible visit visualise wait want watch way we week well went were
what whatever when whenever whether while who whole whose why wide will wish with within without wonderful word
work would write wrong year yes yet you your yourself
"""
# of the laboratory, but nothing that can be outlined
_LABORATORY = """
algorithm annotation archive assay attending clinic consultation cohort conference diagnosis digital doctor eosin
exam experiment haematoxylin hematoxylin histologist histological histology histopathological hospital
investigation laboratory lab lecture magnification microscope microscopic microscopy objective paraffin
pathological pathologist pathology preparation professor protocol referral resection scanner scope stain staining
student surgeon surgery surgical teaching thesis trainee treatment trial ward wsi workflow
"""
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def words(held_back: frozenset[str]) -> tuple[str, ...]:
    """All words of the lists that are not in `held_back`, sorted."""
    return tuple(sorted({*_ASKING.split(), *_LABORATORY.split()} - held_back))


def chatter(vocabulary: tuple[str, ...], rng: np.random.Generator, most: int = 6) -> str:
    """0 to `most` words in random order; one in eight is a word that does not exist."""
    count = int(rng.integers(0, most + 1))
    return " ".join(
        no_word(rng) if rng.random() < 0.125 else vocabulary[int(rng.integers(len(vocabulary)))]
        for _ in range(count)
    )


def no_word(rng: np.random.Generator) -> str:
    """A word that does not exist, of one to three syllables."""
    syllables = int(rng.integers(1, 4))
    letters = [
        _CONSONANTS[int(rng.integers(len(_CONSONANTS)))] + _VOWELS[int(rng.integers(len(_VOWELS)))]
        for _ in range(syllables)
    ]
    return "".join(letters) + _CONSONANTS[int(rng.integers(len(_CONSONANTS)))]
