"""The only code that speaks to the outside; translates SDK errors once into `shared.errors`."""
