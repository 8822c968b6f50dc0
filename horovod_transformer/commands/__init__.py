"""The verbs: one file per command, each with `main(arguments) -> exit code`. Nothing imports a verb."""
