"""First stage: which cells a request asks for, and which of them are to be measured."""
