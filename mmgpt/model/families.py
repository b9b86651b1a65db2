def decoder_fields(folder):
    raise NotImplementedError


def decoder_weights(folder, config):
    raise NotImplementedError
