/*
 * Stand-ins for what docs/qupath/*.groovy use of QuPath, which tests/test_qupath_scripts.py runs them with.
 *
 * Each has the signature that QuPath 0.5 to 0.7 has, read in its source (github.com/qupath/qupath): those of QPEx come
 * from its parent qupath.lib.scripting.QP, the others are named at their classes. Scripts name none of these classes
 * but get their objects, so they can stand here together. What is not used is not here, and a script that calls
 * something else fails.
 */
package qupath.lib.gui.scripting

import groovy.json.JsonOutput
import groovy.json.JsonSlurper

class QPEx {
    static final String PROJECT_BASE_DIR = "{%PROJECT}"

    /** What is open: {slide, mpp, project, id, metadata, objects}; `objects` are GeoJSON features. */
    static Map scene = [:]
    /** The files that were imported, as they were then. */
    static List<String> imported = []

    static ImageServer getCurrentServer() {
        scene.slide ? new ImageServer() : null
    }

    static ProjectImageEntry getProjectEntry() {
        scene.project ? new ProjectImageEntry() : null
    }

    static String buildFilePath(String... path) {
        if (path[0].contains(PROJECT_BASE_DIR) && !scene.project)
            throw new IllegalArgumentException("Cannot resolve path '${path[0]}' - no project base directory available")
        def file = new File(path[0].replace(PROJECT_BASE_DIR, scene.project ?: ""))
        path.drop(1).each { file = new File(file, it) }
        file.getAbsolutePath()
    }

    static boolean mkdirs(String path) {
        new File(path).mkdirs()
    }

    static Collection<PathObject> getAnnotationObjects() {
        scene.objects.collect { new PathObject(it) }.findAll { it.feature.properties.objectType == "annotation" }
    }

    /** Of PathIO.GeoJsonExportOptions, only what a FeatureCollection asks for. */
    static void exportObjectsToGeoJson(
        Collection<? extends PathObject> pathObjects, String path, String option, String... additionalOptions
    ) throws IOException {
        assert [option, *additionalOptions] == ["FEATURE_COLLECTION"]
        def collection = [type: "FeatureCollection", features: pathObjects*.feature]
        new File(path).setText(JsonOutput.toJson(collection), "UTF-8")
    }

    static boolean importObjectsFromFile(String path) throws IOException {
        def text = new File(path).getText("UTF-8")
        imported << text
        scene.objects.addAll(new JsonSlurper().parseText(text).features)
    }
}

/** qupath.lib.images.servers.ImageServer */
class ImageServer {
    Collection<URI> getURIs() { Collections.singletonList(new URI(QPEx.scene.slide)) }

    PixelCalibration getPixelCalibration() { new PixelCalibration() }
}

/** qupath.lib.images.servers.PixelCalibration: NaN where the image has no scale. */
class PixelCalibration {
    private static List<Double> sides() { QPEx.scene.mpp ?: [Double.NaN, Double.NaN] }

    boolean hasPixelSizeMicrons() { QPEx.scene.mpp != null }

    double getPixelWidthMicrons() { sides()[0] }

    double getPixelHeightMicrons() { sides()[1] }

    double getAveragedPixelSizeMicrons() { (sides()[0] + sides()[1]) / 2 }
}

/** qupath.lib.projects.ProjectImageEntry: getMetadataMap is deprecated from 0.6 on, but getMetadata is not in 0.5. */
class ProjectImageEntry {
    String getID() { QPEx.scene.id }

    Map<String, String> getMetadataMap() { Collections.unmodifiableMap(QPEx.scene.metadata) }
}

/** qupath.lib.objects.PathObject */
class PathObject {
    final Map feature

    PathObject(Map feature) { this.feature = feature }

    ROI getROI() { new ROI(feature) }
}

/** qupath.lib.roi.interfaces.ROI */
class ROI {
    private final Map feature

    ROI(Map feature) { this.feature = feature }

    boolean isArea() { feature.geometry.type in ["Polygon", "MultiPolygon"] }
}
