package qupath.lib.common

import java.nio.file.Path
import java.nio.file.Paths

/** Stand-in: see QPEx.groovy. */
class GeneralTools {
    /** Null for what is no file. */
    static Path toPath(URI uri) {
        uri.scheme == null || uri.scheme == "file" ? Paths.get(uri) : null
    }
}
