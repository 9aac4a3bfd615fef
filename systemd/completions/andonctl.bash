# bash completion of andonctl(1): asked of the program itself, so that it always fits it.
source <(andonctl completions bash)
