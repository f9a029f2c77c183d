"""Networks that teach: frozen, averaged, trained beside the student, several as one, kept on record."""
