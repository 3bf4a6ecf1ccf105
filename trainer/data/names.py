"""Names of what a batch carries; free of torch, since recipes are checked by them."""

TEXT = "text"  # the captions' stored embeddings
TOKENS = "tokens"  # their token ids, for a text tower that is trained
IMAGE_FEATURES = "image_features"  # a frozen tower's stored outputs, in place of pictures
IMAGE_ID = "image_id"  # equal where samples show one image, or captions are compared and made from one class's name
LABEL = "label"  # the class of a sample
NUM_CAPTIONS = "num_captions"  # of a sample, where batches have all of them
OWN_NAMES = (TEXT, TOKENS, IMAGE_FEATURES, IMAGE_ID, NUM_CAPTIONS)  # a recipe's columns may not be called so
