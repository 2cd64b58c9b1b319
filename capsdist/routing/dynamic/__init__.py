"""Dynamic routing (Sabour, Frosst, Hinton 2017, Procedure 1): one function, several backends."""
