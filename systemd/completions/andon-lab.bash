# bash completion of andon-lab(1): asked of the program itself, so that it always fits it.
source <(andon-lab completions bash)
