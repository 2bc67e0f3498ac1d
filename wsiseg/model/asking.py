"""Words with which people ask for a structure, and that do not say which one.

Most were written by a language model that saw neither this code nor the wordings of training and validation, and was
told to leave out whatever narrows or negates; what could still change a request's meaning was struck out. Words of
training were added, and of 330 requests by another such author; none of validation, and none of
benchmarks/quality/typed.json.
"""

from __future__ import annotations

_ASKING = """
able about absolutely accentuate accentuated accentuates accentuating accuracy accurate accurately across actual
actually add added adding adds advance advise advised advises advising aforementioned afternoon afterwards again ah
ahead ai aim aimed aiming aims algorithm allow allowed allowing allows alright also am amazing amount amounts analyse
analysed analyses analysing analysis analyze analyzed analyzes analyzing and annotate annotated annotates annotating
annotation annotations answer answered answering answers anybody anyone anything anywhere apologies apologise
apologize app apparent appear appeared appearing appears applicable applied applies apply applying appreciate
appreciated appreciates appreciating appropriate appropriately approximately are area areas as asap ascertain
ascertained ascertaining ascertains ask asked asking asks assess assessed assesses assessing assessment assessments
assign assigned assigning assigns assist assistant assisted assisting assists at attempt attempted attempting attempts
attentively auto automated automatic automatically available awesome basically bboxes be because been began begin
beginning begins behalf being believe believed believes believing belong belongs binary biopsy bit bits bot both
bother boundaries boundary bring bringing brings brought buddy build building builds built bye calculate calculated
calculates calculating call called calling calls came can candidate candidates capture captured captures capturing
careful carefully carried carries carry cautiously certainly characterise characterised characterises characterising
characterize characterized characterizes characterizing chart charted charting charts check checked checking checks
cheers choose chooses choosing chose circle circles circling circumference circumferences class cleanly clearly
colleague colleagues come comes coming command commands completed completes completing compute computed computes
computing concerned concerning conduct conducted conducts confirm confirmed confirming confirms conscientiously
consider considered considering considers construct constructed constructing constructs contain containing contains
continue continues continuing contour contouring contours coordinate coordinates correct correctly corresponding could
count counted counting counts create created creates creating csv currently data dataset datasets day dear define
defines defining delighted delimit delimited delimiting delimits delineate delineated delineates delineating
delineation delineations deliver delivered delivering delivers demand demanded demanding demands demarcate demarcates
demarcating demarcation demarcations demonstrate demonstrated demonstrates demonstrating denote denoted denotes
denoting density depict depicted depicting depicts designate designated designates designating desire desired desires
desiring detect detectable detected detecting detection detections detects determine determined determines determining
diagram diagrams diameter did diligently discern discernable discerned discernible discerning discerns discover
discovered discovering discovers discriminate discriminated discriminates discriminating display displayed displaying
displays distinguish distinguishable distinguished distinguishes distinguishing distribution do doc doctor document
documented documenting documents does doing done dr draw drawing drawings drawn draws during easily easy effectively
efficiently eh either emphasise emphasised emphasises emphasising emphasize emphasized emphasizes emphasizing employ
employed employing employs enable enabled enables enabling ensure ensured ensures ensuring entire entirety entities
entity enumerate enumerated enumerates enumerating enumeration estimate estimated estimates estimating estimation
evening everybody everyone everything everywhere evidence evident exact exactly exactness examination examinations
examine examined examines examining excuse execute executed executes executing exercise exercises exhaustively exist
existence existent existing exists expect expected expecting expects explain explained explaining explains explore
explored explores exploring export exported exporting exports extent extents extract extracted extracting extraction
extracts faithfully fast favor favour feature features fetch fetched fetches fetching file files find finding finds
finish finished finishes finishing flagging flags foci focusing focussing folks follow follows for forward found
friend from gave generate generated generates generating gently geojson get gets getting gimme give given gives giving
glad go goal goals goes going gone gonna goodbye got gotta gotten grab grabbed grabbing grabs grateful gratefully
gratitude greetings guess guessed guesses guessing guide guided guides guy guys had happy has have having hello helo
help helped helping helps hence here hey hi highlight highlighted highlighting highlights hiya hm honestly hope hoped
hopefully hopes hoping how hows hunt hunted hunting hunts i ideally identifiable identification identifications
identified identifies identify identifying ids if illustrate illustrated illustrates illustrating illustration
illustrations image images immediately import imported importing imports in include included includes including
indicate indicated indicates indicating individual individually infer inference inferred inferring infers inspect
inspected inspecting inspection inspections inspects instance instances instruction instructions intend intended
intending intends interest interested interests interpret interpretation interpretations interpreted interpreting
interprets into investigate investigated investigates investigating is isolate isolates isolating it item items its
itself job jobs jpeg json just kindly knew know knowing known knows label labeling labelling later learn learned
learning learns learnt lemme let lets letting level list listed listing lists load loading loads localisation localise
localises localising localization localize localizes localizing locate located locates locating location locations log
logged logging logs look looked looking looks lot lots love loved lovely loves made make makes making manage managed
manages managing manner manual manually many map mapped mapping maps mark marked marking markings marks mask masked
masking masks mate may maybe me measure measured measurement measurements measures measuring mentioned merely
meticulously metric metrics might mind mine mm mm2 mm² model moment morning morphology morphometry must my myself name
named names naming neatly need needed needing needs nice nicely note noted notes notice noticeable noticed notices
noticing noting now number numbers object objects observable observe observed observes observing obtain obtained
obtaining obtains occurrence occurrences occurring of offer offered offering offers oh ok okay okey on once one ones
only onto or order ought our ours ourselves out outcome outcomes outline outlined outlines outlining output outputs
outputting overall overlaid overlay overlaying overlays paint painted painting paints paper papers pardon part parts
per perceivable percentage percentages perceptible perfectly perform performed performing performs perhaps perimeter
perimeters pertinent photo photos pick picked picking picks picture pictured pictures pinpoint pinpointed pinpointing
pinpoints pixel pixels place placed places placing plan planned planning plans please pleasure plot plots plotted
plotting pls plz png point pointing points polygon polygons polyline polylines population portion portions position
positioned positioning positions possible possibly precise precisely precision predict predicted predicting prediction
predictions predicts prefer preferably preferred preferring prefers prepare prepared prepares preparing presence
present presentation presentations presented presenting presently presents proceed proceeded proceeding proceeds
produce produces prof professor profile profiles program programme project projects prompt promptly prompts properly
proportion provide provided provides providing pull pulled pulling pulls purpose put puts putting quantification
quantifications quantified quantifies quantify quantifying quantitate quantitated quantitates quantitating quantities
quantity queries query question questions quick quicker quickly qupath r ran rapidly ready really recognisable
recognise recognised recognises recognising recognition recognizable recognize recognized recognizes recognizing
record recorded recording records recount redid redo redoes redoing redone redraw redrawing redrawn redraws redrew
regarding regards region regions register registered registering registers relabel relevant reliably remember
remembering remembers render rendered rendering renders repeat repeated repeating repeats report reported reporting
reports represent represented representing represents request requested requesting requests require required requires
requiring research resegment resegmenting respectfully respective respectively result results retrace retraced
retraces retracing retrieve retrieved retrieves retrieving return returned returning returns reveal revealed revealing
reveals review reviewed reviewing reviews roughly run running runs said sake save saved saves saving saw say saying
says scan scanned scanning scans screen screened screening screens search searched searches searching section sections
see seeing seek seeking seeks seem seemed seeming seems seen sees segment segmentate segmentates segmentating
segmentation segmentations segmenting select selecting selects send sending sends sent set sets setting shade shaded
shades shading shall shape shapes share shared shares sharing should show showed showing shown shows sign signs
silhouette silhouettes simply since sincerely sketch sketched sketches sketching slide slides so software somebody
someone soon sorry sought specified specifies specify specifying spot spotting start started starting starts state
stated states stating statistics straightaway structure structures studied studies study studying stuff submit submits
submitted submitting such suggest suggested suggesting suggests superimpose superimposed superimposes superimposing
suppose supposed supposes supposing surely svg svs swiftly systematically take taken takes taking tallied tallies
tallying task tasks taught teach teaches teaching team tell telling tells thank thankful thanks thankyou thanx that
thats their theirs them themselves then there thereby therefore therein theres these they thing things think thinking
thinks this thks thorough thoroughly those thought through throughout thus thx tif tiff time to today told tomorrow
tonight too took tool total totals trace traced traces tracing tracings track tracked tracking tracks tried tries
trouble try trying ty u uh um underline underlined underlines underlining understand understanding understands
understood up update updated updates updating upon ur us use used uses using utilise utilised utilises utilising
utilize utilized utilizes utilizing validate validated validates validating various verified verifies verify verifying
via view viewable viewed viewing views visible visibly visualisation visualisations visualise visualised visualises
visualising visualization visualizations visualize visualized visualizes visualizing wanna want wanted wanting wants
was watch watched watches watching way we welcome went were what whatever whats when whenever where wheres wherever
whether which whichever while whilst who whoever whole whom whos whose why will willing wish wished wishes wishing
wonder wondered wondering wonders work worked working works would wsi wsis xml yeah yep yes yield yielded yielding
yields you your youre yours yourself yourselves yup zone zones zoom zoomed zooming zooms
"""
# "in this H&E image of", "from a breast biopsy"
_PLACES = """
biopsies biopsy excision excisions field fields fov fovs histology hpf hpfs image imagery images img imgs lpf
microarray microarrays micrograph micrographs microphotograph microphotographs microscopy photo photograph photographs
photomicrograph photomicrographs photos pic pics picture pictures preparation preparations resection resections sample
samples scan scans scene screenshot screenshots section sections slide slides snapshot snapshots specimen specimens
thumbnail thumbnails tile tiles tissue tissues tma tmas view viewport views wsi wsis
"""
_BEFORE_PLACES = """
biomedical biopsy bladder bowel brain breast brightfield clinical colon colonic colorectal complete conventional
counterstained current cytologic cytological cytology diagnostic digital digitised digitized e entire eosin ffpe fixed
formalin frozen full gastric giemsa gigapixel given h haematoxylin he hematoxylin histo histologic histological
histologically histology histopathologic histopathological histopathology hne ihc image immunohistochemical
immunohistochemistry intestinal kidney liver lung magnified medical micrographic microscope microscopic microscopical
microscopy mounted oesophageal original ovarian overall pancreatic paraffin patient patients placenta presented
prostate rectal renal research rgb routine sample scanned sectioned skin slide specimen spleen stain stained standard
stomach surgical teaching testis thyroid tissue trichrome uterine virtual whole zoomed
"""
ASKING, PLACES, BEFORE_PLACES = (frozenset(words.split()) for words in (_ASKING, _PLACES, _BEFORE_PLACES))
