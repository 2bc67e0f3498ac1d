/*
 * Write the annotations of this project's images where `wsiseg data import qupath` reads them.
 * For QuPath 0.5 or newer: open the project, then Automate > Script editor, open this file, and Run > Run for project.
 * It makes the folder wsiseg-export in the project's folder. See docs/qupath.md.
 */
import qupath.lib.common.GeneralTools

def folder = buildFilePath(PROJECT_BASE_DIR, "wsiseg-export")
mkdirs(folder)
def server = getCurrentServer()
def slide = GeneralTools.toPath(server.getURIs()[0])
if (slide == null) {
    println "left out, no local file: " + server.getURIs()[0]
    return
}
def entry = getProjectEntry()
def name = entry.getID() + ".geojson"
// Points and lines have no area to learn from.
def areas = getAnnotationObjects().findAll { it.getROI().isArea() }
exportObjectsToGeoJson(areas, buildFilePath(folder, name), "FEATURE_COLLECTION")

def quoted = { text -> '"' + text.toString().replace('"', '""') + '"' }
def calibration = server.getPixelCalibration()
def mpp = calibration.hasPixelSizeMicrons() ? calibration.getAveragedPixelSizeMicrons() : ""
def patient = entry.getMetadataMap().getOrDefault("patient", "")
def index = new File(buildFilePath(folder, "index.csv"))
def lines = index.exists() ? index.readLines("UTF-8").findAll { !it.contains(quoted(name)) } : ["slide,geojson,mpp,patient"]
lines << [quoted(slide), quoted(name), mpp, quoted(patient)].join(",")
index.setText(lines.join("\n") + "\n", "UTF-8")
