/*
 * Ask the image that is open in QuPath, and import the outlines as annotations.
 * For QuPath 0.5 or newer: Automate > Script editor, open this file, Run. See docs/qupath.md.
 */
import qupath.fx.dialogs.Dialogs
import qupath.lib.common.GeneralTools

// Where `wsiseg` is, if it is not on the PATH that QuPath was started with, such as /home/me/venv/bin/wsiseg
def WSISEG = "wsiseg"

def server = getCurrentServer()
if (server == null) {
    Dialogs.showErrorMessage("wsiseg", "Open an image first.")
    return
}
def slide = GeneralTools.toPath(server.getURIs()[0])
if (slide == null) {
    Dialogs.showErrorMessage("wsiseg", "The image is no local file: " + server.getURIs()[0])
    return
}
def query = Dialogs.showInputDialog("wsiseg", "What should be outlined?", "outline the nuclei")
if (!query)
    return

def out = File.createTempFile("wsiseg-", ".geojson")
def command = [WSISEG, "segment", slide.toString(), "--query", query, "--out", out.getPath()]
def calibration = server.getPixelCalibration()
if (calibration.hasPixelSizeMicrons())
    command += ["--slide-mpp", calibration.getPixelWidthMicrons() + "," + calibration.getPixelHeightMicrons()]

def process
try {
    process = new ProcessBuilder(command).redirectOutput(ProcessBuilder.Redirect.DISCARD).start()
} catch (IOException error) {
    Dialogs.showErrorMessage("wsiseg", error.getMessage() + "\nPut its full path after WSISEG = in the script.")
    return
}
def said = ""
process.errorStream.eachLine { line -> println line; if (line.startsWith("wsiseg: ")) said = line }
if (process.waitFor() != 0) {
    Dialogs.showErrorMessage("wsiseg", said ?: "wsiseg failed; see the log")
    return
}
def before = getAnnotationObjects().size()
importObjectsFromFile(out.getPath())
out.delete()
def found = getAnnotationObjects().size() - before
Dialogs.showInfoNotification("wsiseg", query + ": " + found + " found" + (said ? "\n" + said : ""))
