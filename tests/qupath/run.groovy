/*
 * Run scripts as QuPath's script editor does, with the stand-ins beside this file: groovy -cp HERE run.groovy SCENES
 *
 * SCENES is a JSON list of {script, answer, ...what QPEx.scene holds}; stdout gets one of what each led to.
 */
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import qupath.fx.dialogs.Dialogs
import qupath.lib.gui.scripting.QPEx

def results = new JsonSlurper().parse(new File(args[0]), "UTF-8").collect { scene ->
    QPEx.scene = scene
    QPEx.imported = []
    Dialogs.answer = scene.answer
    Dialogs.shown = []
    def log = new StringWriter()
    def shell = new GroovyShell(this.class.classLoader, new Binding(out: new PrintWriter(log)))
    def failed = null
    try {
        // QuPath's DefaultScriptLanguage puts the import before the script, on its first line.
        shell.evaluate("import static qupath.lib.gui.scripting.QPEx.*; " + new File(scene.script).getText("UTF-8"))
    } catch (Throwable error) {
        failed = error.toString()
    }
    [shown: Dialogs.shown, imported: QPEx.imported, log: log.toString(), failed: failed]
}
println JsonOutput.toJson(results)
