"""The command line, `keeper`: typer commands over the same package that runs in Azure."""
