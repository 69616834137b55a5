"""Arguments of `bench` for the suite whose cells take milliseconds."""

TOY = ("--suite", "toy", "--tasks", "toy", "--no-references", "--seeds", "1")
TWO = (*TOY, "--methods", "toynoise", "--bits", "W4A8,W8A8")  # cells of each of its models
