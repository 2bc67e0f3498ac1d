"""The command line, installed as `wsiseg.cli`: one file per command, no logic beyond parsing and printing."""
