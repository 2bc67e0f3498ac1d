package qupath.fx.dialogs

/** Stand-in: see QPEx.groovy. The real one is in github.com/qupath/qupath-fxtras, which QuPath has from 0.5 on. */
class Dialogs {
    /** What the person types; null closes the dialog. */
    static String answer = null
    static List<List<String>> shown = []

    static String showInputDialog(final String title, final String message, final String initialInput) {
        shown << ["input", message]
        answer
    }

    static void showErrorMessage(final String title, final String message) { shown << ["error", message] }

    static void showInfoNotification(final String title, final String message) { shown << ["info", message] }
}
